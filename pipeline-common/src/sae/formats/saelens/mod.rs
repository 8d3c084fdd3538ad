//! The SAELens inference directory: `cfg.json`, `sae_weights.safetensors`, `sparsity.safetensors`.
//!
//! `W_enc` F32 `[d_in, d_sae]`, `b_enc` `[d_sae]`, `W_dec` `[d_sae, d_out]`, `b_dec` `[d_out]`;
//! `threshold` `[d_sae]` for jumprelu; `b_gate` in place of `b_enc`, `r_mag`, `b_mag` `[d_sae]` for
//! gated; `W_skip` `[d_out, d_in]` for skip transcoders; `sparsity` `[d_sae]` = log10 of the firing
//! frequency. SAELens knows transcoders with ReLU and JumpReLU; those with TopK and gates are
//! written the same way under names of their own.
//!
//! Written is SAELens 6; read also what its training saves (`batchtopk` and `matryoshka_batchtopk`
//! with one `topk_threshold`) and the flat configurations of versions before 6.

mod read;
mod write;

use serde_json::{Map, Value};

pub use self::{
    read::{load, read},
    write::{require, save, write},
};
use crate::sae::{Activation, parameters::Shape};

/// The configuration's file name.
pub const CFG: &str = "cfg.json";
/// The weights' file name.
pub const WEIGHTS: &str = "sae_weights.safetensors";
/// The firing frequencies' file name.
pub const SPARSITY: &str = "sparsity.safetensors";

/// Added to a frequency before its logarithm, as SAELens does.
const LOG_FLOOR: f64 = 1e-10;

/// What is written beside the weights.
#[derive(Clone, Debug, Default)]
pub struct About {
    /// Kept in `cfg.json`.
    pub metadata: Map<String, Value>,
    /// Of a transcoder, the hook whose rows it reconstructs.
    pub target: Option<String>,
    /// Each latent's share of rows in which it was active; empty where that is not known.
    pub frequency: Vec<f64>,
}

/// A suffix to the architecture of transcoders.
const TRANSCODER: &str = "transcoder";
const SKIP: &str = "skip_transcoder";

/// SAELens' name of one of our tensors.
fn name_of(tensor: &str, activation: Activation) -> &'static str {
    match tensor {
        "w_enc" => "W_enc",
        "b_enc" if activation == Activation::Gated => "b_gate",
        "b_enc" => "b_enc",
        "w_dec" => "W_dec",
        "b_dec" => "b_dec",
        "threshold" => "threshold",
        "r_mag" => "r_mag",
        "b_mag" => "b_mag",
        _ => "W_skip",
    }
}

/// A tensor's shape in the file.
fn shape_of(tensor: &str, shape: Shape) -> Vec<usize> {
    match tensor {
        "w_enc" => vec![shape.d_in, shape.d_sae],
        "w_dec" => vec![shape.d_sae, shape.d_out],
        "b_dec" => vec![shape.d_out],
        "w_skip" => vec![shape.d_out, shape.d_in],
        _ => vec![shape.d_sae],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sae::{
        Parameters, Sae,
        random::{Normal, Purpose},
        weights::tests::random_sae,
    };

    const ACTIVATIONS: [Activation; 4] =
        [Activation::TopK { k: 3 }, Activation::JumpRelu, Activation::Relu, Activation::Gated];

    fn about() -> About {
        About { frequency: vec![0.5; 9], ..About::default() }
    }

    #[test]
    fn every_architecture_comes_back() {
        for activation in ACTIVATIONS {
            let dir = tempfile::tempdir().unwrap();
            let sae = random_sae(5, 9, activation);
            save(dir.path(), &sae, about()).unwrap();
            assert_eq!(load(dir.path()).unwrap(), sae);
        }
    }

    #[test]
    fn transcoders_come_back() {
        for (activation, skip) in ACTIVATIONS.into_iter().flat_map(|a| [(a, false), (a, true)]) {
            let dir = tempfile::tempdir().unwrap();
            let shape = random_sae(5, 9, activation).params.shape();
            let params = Parameters::zeros(Shape { d_out: 7, skip, ..shape });
            let mut sae = Sae { subtract_b_dec: false, ..Sae::new(params, activation) };
            let mut normal = Normal::new(3, Purpose::Decoder);
            sae.params.tensors_mut().into_iter().for_each(|t| normal.fill(t));
            sae.params.threshold.iter_mut().for_each(|t| *t = t.abs());
            let target = Some("blocks.0.hook_mlp_out".to_owned());
            save(dir.path(), &sae, About { target, ..about() }).unwrap();
            assert_eq!(load(dir.path()).unwrap(), sae);
        }
    }

    #[test]
    fn a_decoder_norm_in_the_configuration_is_folded() {
        let dir = tempfile::tempdir().unwrap();
        let mut sae = random_sae(5, 9, Activation::TopK { k: 9 });
        sae.params.w_dec.iter_mut().for_each(|w| *w *= 3.0);
        save(dir.path(), &sae, about()).unwrap();
        let path = dir.path().join(CFG);
        let text = fs_err::read_to_string(&path).unwrap().replace(
            "\"rescale_acts_by_decoder_norm\": false",
            "\"rescale_acts_by_decoder_norm\": true",
        );
        fs_err::write(&path, text).unwrap();
        let folded = load(dir.path()).unwrap();
        let x = [0.3, -0.2, 1.0, 0.7, -0.4];
        let (a, b) = (sae.encode(&x), folded.encode(&x));
        assert_eq!(a.row(0).0, b.row(0).0);
        a.row(0).1.iter().zip(b.row(0).1).for_each(|(a, b)| assert!((a * 3.0 - b).abs() < 1e-4));
        sae.decode(&a)
            .iter()
            .zip(folded.decode(&b))
            .for_each(|(a, b)| assert!((a - b).abs() < 1e-4));
    }

    #[test]
    fn what_would_change_the_result_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        save(dir.path(), &random_sae(5, 9, Activation::Relu), about()).unwrap();
        let path = dir.path().join(CFG);
        let good = fs_err::read_to_string(&path).unwrap();
        for (from, to) in [
            ("\"standard\"", "\"lorsa\""),
            (
                "\"normalize_activations\": \"none\"",
                "\"normalize_activations\": \"constant_norm_rescale\"",
            ),
            ("\"d_sae\": 9", "\"d_sae\": 8"),
        ] {
            fs_err::write(&path, good.replace(from, to)).unwrap();
            assert!(load(dir.path()).is_err(), "{to}");
        }
    }
}
