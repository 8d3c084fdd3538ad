//! Hands the requested tensors out of a running forward pass, takes what is to stand in their place,
//! and stops the pass after the last.

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
///
/// A tensor that it returns, of the same shape, takes that one's place in all that is computed from
/// it; without one the pass goes on with the very tensor that was handed out.
pub type Visit<'a> = dyn FnMut(usize, Tensor) -> Result<Option<Tensor>> + 'a;

/// The hooks of one forward pass.
pub(super) struct Tape<'a> {
    hooks: &'a [Hook],
    visit: &'a mut Visit<'a>,
    left: usize,
    /// Whether the pass ends with the last hook.
    halts: bool,
    layer: Option<usize>,
}

impl<'a> Tape<'a> {
    pub fn new(hooks: &'a [Hook], halts: bool, visit: &'a mut Visit<'a>) -> Self {
        Self { hooks, visit, left: hooks.len(), halts, layer: None }
    }

    /// Enters a block, or leaves the last one.
    pub fn enter(&mut self, layer: Option<usize>) {
        self.layer = layer;
    }

    /// Whether a tensor that is not needed otherwise is asked for here.
    pub fn wants(&self, point: Point) -> bool {
        self.hooks.contains(&Hook { layer: self.layer, point })
    }

    /// Hands out the tensor of a point if it was asked for; after the last, `Halt::Done` ends the pass.
    ///
    /// Returns what the pass goes on with. A hook that was asked for twice is visited twice, the
    /// second time with what the first visit returned.
    pub fn at(&mut self, point: Point, mut tensor: Tensor) -> std::result::Result<Tensor, Halt> {
        let here = Hook { layer: self.layer, point };
        for (index, _) in self.hooks.iter().enumerate().filter(|(_, hook)| **hook == here) {
            if let Some(other) = (self.visit)(index, tensor.to_dtype(DType::F32)?.contiguous()?)? {
                tensor = in_place_of(&tensor, &other)?;
            }
            self.left -= 1;
        }
        if self.halts && self.left == 0 { Err(Halt::Done) } else { Ok(tensor) }
    }
}

/// `other` in the format and on the device of `tensor`, whose shape it must have.
fn in_place_of(tensor: &Tensor, other: &Tensor) -> Result<Tensor> {
    if tensor.dims() != other.dims() {
        let (expected, got) = (tensor.shape().clone(), other.shape().clone());
        let msg = "a tensor in place of a hook's".to_owned();
        return Err(candle_core::Error::UnexpectedShape { msg, expected, got });
    }
    other.to_device(tensor.device())?.to_dtype(tensor.dtype())?.contiguous()
}
