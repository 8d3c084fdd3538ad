//! Losses and gradient norms of peers' own code on one small case.
//!
//! d = 4, L = 6, B = 3, values from sines, computed by SAELens 6.54 and `dictionary_learning` in
//! f64. The numbers separate every known variant: sum against mean, detach, scale, window.

use super::{
    Batch, Firing, Losses, Objective,
    dense::Dense,
    jumprelu::JumpRelu,
    standard::Standard,
    topk::{Aux, AuxForm, TopK},
};
use crate::sae::{Parameters, init::normalise, parameters::transpose};

const D_IN: usize = 4;
const D_SAE: usize = 6;

fn wave(n: usize, scale: f64, step: f64, phase: f64) -> Vec<f32> {
    (0..n).map(|i| (scale * (step * i as f64 + phase).sin()) as f32).collect()
}

fn params(unit_decoder: bool, threshold: Option<f32>) -> Parameters {
    let mut p = Parameters::zeros(D_IN, D_SAE, threshold.is_some());
    p.w_enc = transpose(&wave(D_IN * D_SAE, 1.0, 0.9, 0.2), D_IN, D_SAE);
    p.w_dec = wave(D_SAE * D_IN, 1.0, 1.1, 0.3);
    p.b_dec = wave(D_IN, 0.1, 0.5, 0.4);
    p.b_enc = wave(D_SAE, 0.1, 0.3, 0.5);
    p.threshold.fill(threshold.unwrap_or(0.0));
    if unit_decoder {
        p.w_dec.chunks_exact_mut(D_IN).for_each(normalise);
    }
    p
}

/// Latents 0, 1 and 2 are dead.
fn run(p: &Parameters, objective: &mut dyn Objective) -> (Losses, Parameters) {
    let x = wave(3 * D_IN, 1.0, 0.7, 0.1);
    let input: Vec<f32> = x.iter().zip(p.b_dec.iter().cycle()).map(|(x, b)| x - b).collect();
    let mut firing = Firing { since: vec![9, 9, 9, 0, 0, 0], dead_after: 9 };
    let mut grads = p.zeros_like();
    let batch = Batch { input: &input, threads: 1, sparsity: 1.0 };
    (objective.accumulate(p, batch, &mut firing, &mut grads), grads)
}

fn norm(t: &[f32]) -> f64 {
    t.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt()
}

fn close(found: f64, expected: f64, what: &str) {
    assert!(
        (found - expected).abs() <= 1e-5 * expected.abs().max(1.0),
        "{what}: {found}, expected {expected}"
    );
}

fn aux(coefficient: f64, form: AuxForm) -> Aux {
    Aux { coefficient, k: D_IN / 2, form }
}

#[test]
fn saelens_standard() {
    let (l, g) = run(&params(false, None), &mut Dense::new(Standard::default(), 1.0));
    close(l.mse, 6.615_787, "mse");
    close(l.sparsity, 5.933_071, "l1");
    close(l.total, 12.548_859, "total");
    close(norm(&g.w_enc), 8.136_310, "W_enc");
    close(norm(&g.w_dec), 8.790_504, "W_dec");
}

#[test]
fn saelens_topk() {
    let (l, g) = run(&params(false, None), &mut TopK::new(2, aux(1.0, AuxForm::Scaled), true));
    close(l.mse, 9.197_102, "mse");
    close(l.aux, 24.744_364, "aux");
    close(l.total, 33.941_467, "total");
    close(norm(&g.w_enc), 18.491_863, "W_enc");
    close(norm(&g.w_dec), 22.680_935, "W_dec");
}

#[test]
fn saelens_jumprelu() {
    let (l, g) = run(&params(false, Some(0.1)), &mut Dense::new(JumpRelu { bandwidth: 0.5 }, 1.0));
    close(l.mse, 6.615_787, "mse");
    close(l.sparsity, 3.333_333, "l0");
    close(l.total, 9.949_121, "total");
    close(norm(&g.threshold), 0.020_452, "threshold");
    close(norm(&g.w_enc), 7.200_602, "W_enc");
    close(norm(&g.w_dec), 8.030_982, "W_dec");
}

#[test]
fn dictionary_learning_topk() {
    let (l, g) =
        run(&params(true, None), &mut TopK::new(2, aux(1.0 / 32.0, AuxForm::Normalised), false));
    close(l.mse, 5.311_355, "l2");
    close(l.aux, 1.247_453, "aux");
    close(l.total, 5.350_338, "total");
    close(norm(&g.w_enc), 3.076_883, "W_enc");
    close(norm(&g.w_dec), 7.005_280, "W_dec");
}

/// Every parameter's gradient against central differences of the loss.
#[test]
fn gradients_are_the_derivatives_of_the_loss() {
    type Make = fn() -> Box<dyn Objective>;
    let objectives: [(&str, Make); 3] = [
        ("standard", || Box::new(Dense::new(Standard::default(), 0.3))),
        ("topk", || Box::new(TopK::new(2, aux(0.0, AuxForm::Normalised), false))),
        // With λ = 0 and away from the window the thresholds have no gradient.
        ("jumprelu", || Box::new(Dense::new(JumpRelu { bandwidth: 1e-6 }, 0.0))),
    ];
    for (name, make) in objectives {
        let p = params(true, Some(0.1));
        let x = wave(3 * D_IN, 1.0, 0.7, 0.1);
        let loss = |p: &Parameters| {
            let input: Vec<f32> =
                x.iter().zip(p.b_dec.iter().cycle()).map(|(x, b)| x - b).collect();
            let mut firing = Firing::new(D_SAE, 1000);
            let batch = Batch { input: &input, threads: 1, sparsity: 1.0 };
            let mut grads = p.zeros_like();
            (make().accumulate(p, batch, &mut firing, &mut grads).total, grads)
        };
        let (_, grads) = loss(&p);
        for tensor in 0..4 {
            for i in 0..p.tensors()[tensor].len() {
                let at = |delta: f32| {
                    let mut moved = p.clone();
                    moved.tensors_mut()[tensor][i] += delta;
                    loss(&moved).0
                };
                let numeric = (at(1e-3) - at(-1e-3)) / 2e-3;
                let found = f64::from(grads.tensors()[tensor][i]);
                assert!(
                    (numeric - found).abs() < 2e-2,
                    "{name} tensor {tensor} [{i}]: {found}, {numeric}"
                );
            }
        }
    }
}
