//! The architectures, and what of them decides tensors and inference.

use clap::ValueEnum;

use crate::sae::{Activation, parameters::Shape};

/// Architectures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "lower")]
pub enum Architecture {
    /// The k largest activations of a row, with an auxiliary loss for dead latents.
    TopK,
    /// The k largest activations a row on average, chosen among a whole batch.
    BatchTopK,
    /// BatchTopK of which the first latents reconstruct the input alone, at several widths.
    Matryoshka,
    /// A trained threshold per latent and an L0 penalty.
    JumpRelu,
    /// A gate per latent apart from its magnitude, and an L1 penalty.
    Gated,
    /// ReLU with an L1 penalty.
    Standard,
    /// ReLU with an Lp penalty whose exponent falls from 1.
    PAnneal,
}

impl Architecture {
    /// Whether latents are chosen by rank.
    pub fn is_top_k(self) -> bool {
        matches!(self, Self::TopK | Self::BatchTopK | Self::Matryoshka)
    }

    /// The tensors that training learns, for an input and an output of these widths; `skip` adds
    /// a path around the latents.
    pub fn shape(self, d_in: usize, d_out: usize, d_sae: usize, skip: bool) -> Shape {
        let (threshold, gate) = (self == Self::JumpRelu, self == Self::Gated);
        Shape { d_in, d_out, d_sae, threshold, gate, skip }
    }

    /// Which pre-activations count on rows alone. What is chosen among a batch gets a threshold
    /// after training, as SAELens.
    pub fn activation(self, k: usize) -> Activation {
        match self {
            Self::TopK => Activation::TopK { k },
            Self::BatchTopK | Self::Matryoshka | Self::JumpRelu => Activation::JumpRelu,
            Self::Gated => Activation::Gated,
            Self::Standard | Self::PAnneal => Activation::Relu,
        }
    }
}
