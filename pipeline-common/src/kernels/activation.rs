//! Activation functions of the feed-forward block, alone or times a gate's partner.

use std::f32::consts::FRAC_1_SQRT_2;

use candle_core::{Result, Tensor};

use super::{
    elementary::{erf, exp},
    host::{by_chunks, tensor, view},
    vector::simd,
};

/// Numbers handled by one task.
const CHUNK: usize = 16 * 1024;

const SQRT_2_OVER_PI: f32 = 0.797_884_6;

/// An activation function, applied to every number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x / (1 + exp(-x))`, also called swish.
    Silu,
    /// `x * (1 + erf(x / sqrt 2)) / 2`.
    Gelu,
    /// The approximation of GELU by a hyperbolic tangent.
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
}

impl Activation {
    /// Names of `hidden_act` that are understood.
    pub const NAMES: &'static str =
        "silu, swish, gelu, gelu_new, gelu_fast, gelu_pytorch_tanh, relu";

    /// The function that `hidden_act` of a `config.json` names.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "silu" | "swish" => Self::Silu,
            "gelu" => Self::Gelu,
            "gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" => Self::GeluTanh,
            "relu" => Self::Relu,
            _ => return None,
        })
    }

    /// Applies the function; same shape.
    ///
    /// # Errors
    /// What the device reports.
    pub fn apply(self, x: &Tensor) -> Result<Tensor> {
        let Some(xs) = view(x) else { return self.portable(x) };
        let out = by_chunks(xs.len(), CHUNK, |i, y| {
            y.copy_from_slice(&xs[i * CHUNK..][..y.len()]);
            self.apply_to(y);
        });
        tensor(out, x.shape())
    }

    /// `act(gate) * up`; all three have the same shape.
    ///
    /// # Errors
    /// What the device reports.
    pub fn gated(self, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
        let (Some(gs), Some(us)) = (view(gate), view(up)) else {
            return self.portable(gate)? * up;
        };
        let out = by_chunks(gs.len(), CHUNK, |i, y| {
            y.copy_from_slice(&gs[i * CHUNK..][..y.len()]);
            self.apply_to(y);
            y.iter_mut().zip(&us[i * CHUNK..]).for_each(|(y, u)| *y *= u);
        });
        tensor(out, gate.shape())
    }

    /// Applies the function in place, on this thread.
    pub(super) fn apply_to(self, y: &mut [f32]) {
        match self {
            Self::Silu => simd(
                #[inline(always)]
                || each(y, |x| x / (1.0 + exp(-x))),
            ),
            Self::Gelu => simd(
                #[inline(always)]
                || each(y, |x| 0.5 * x * (1.0 + erf(x * FRAC_1_SQRT_2))),
            ),
            // x (1 + tanh u) / 2 = x / (1 + exp(-2u))
            Self::GeluTanh => simd(
                #[inline(always)]
                || {
                    each(y, |x| {
                        x / (1.0 + exp(-2.0 * SQRT_2_OVER_PI * (x + 0.044_715 * x * x * x)))
                    })
                },
            ),
            Self::Relu => simd(
                #[inline(always)]
                || each(y, |x| if x < 0.0 { 0.0 } else { x }),
            ),
        }
    }

    fn portable(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Silu => x.silu(),
            Self::Gelu => x.gelu_erf(),
            Self::GeluTanh => x.gelu(),
            Self::Relu => x.relu(),
        }
    }
}

#[inline(always)]
fn each(y: &mut [f32], f: impl Fn(f32) -> f32) {
    for y in y {
        *y = f(*y);
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::testing::{assert_close, numbers},
        *,
    };

    const ALL: [Activation; 4] =
        [Activation::Silu, Activation::Gelu, Activation::GeluTanh, Activation::Relu];

    #[test]
    fn fast_equals_reference() {
        let x = (numbers(1, (9, 4001)) * 4.0).unwrap();
        let up = numbers(2, (9, 4001));
        for act in ALL {
            let expected = act.portable(&x).unwrap();
            assert_close(&act.apply(&x).unwrap(), &expected, 2e-6);
            assert_close(&act.gated(&x, &up).unwrap(), &(expected * &up).unwrap(), 4e-6);
        }
    }

    #[test]
    fn names_are_those_listed() {
        assert!(Activation::NAMES.split(", ").all(|n| Activation::named(n).is_some()));
        assert_eq!(Activation::named("quick_gelu"), None);
    }
}
