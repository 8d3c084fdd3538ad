//! Hands the requested tensors out of a running forward pass and stops it after the last.

use candle_core::{DType, Result, Tensor};

use super::{hook::Hook, site::Point};

/// Why a forward pass ended.
pub(super) enum Halt {
    /// Every requested hook was handed out; what is deeper need not be computed.
    Done,
    /// The arithmetic or the receiver failed.
    Failed(candle_core::Error),
}

impl From<candle_core::Error> for Halt {
    fn from(error: candle_core::Error) -> Self {
        Self::Failed(error)
    }
}

/// Receives a hook's index in the request and its tensor [rows, width] f32.
pub type Emit<'a> = dyn FnMut(usize, Tensor) -> Result<()> + 'a;

/// The hooks of one forward pass.
pub(super) struct Tape<'a> {
    hooks: &'a [Hook],
    emit: &'a mut Emit<'a>,
    left: usize,
    layer: Option<usize>,
}

impl<'a> Tape<'a> {
    pub fn new(hooks: &'a [Hook], emit: &'a mut Emit<'a>) -> Self {
        Self { hooks, emit, left: hooks.len(), layer: None }
    }

    /// Enters a block, or leaves the last one.
    pub fn enter(&mut self, layer: Option<usize>) {
        self.layer = layer;
    }

    /// Whether a tensor that is not needed otherwise is asked for here.
    pub fn wants(&self, point: Point) -> bool {
        self.hooks.contains(&Hook { layer: self.layer, point })
    }

    /// Hands out the tensor of a point if it was asked for; `Halt::Done` after the last.
    pub fn at(&mut self, point: Point, tensor: &Tensor) -> std::result::Result<(), Halt> {
        let here = Hook { layer: self.layer, point };
        for (index, _) in self.hooks.iter().enumerate().filter(|(_, hook)| **hook == here) {
            (self.emit)(index, tensor.to_dtype(DType::F32)?.contiguous()?)?;
            self.left -= 1;
        }
        if self.left == 0 { Err(Halt::Done) } else { Ok(()) }
    }
}
