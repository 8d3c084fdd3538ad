//! Losses and gradient norms of peers' own code on one small case.
//!
//! d = 4, L = 6, B = 3, values from sines, computed by SAELens 6.54, `dictionary_learning`,
//! sparsify 1.3.3 and openai/sparse_autoencoder in f64. The numbers separate every known variant: sum against mean, detach, scale, window.

use candle_core::DType;

use super::{
    Batch, Firing, Losses, Objective,
    dense::Dense,
    gated::{Gated, GatedForm},
    jumprelu::{JumpRelu, Sparsity, Window},
    standard::Standard,
    threshold::Running,
    topk::{Among, Aux, AuxForm, Prefix, Selection, TopK},
};
use crate::sae::{
    Activation, Parameters, Sae,
    formats::adapt::fold_decoder_norm,
    gradients::Gradients,
    init::normalise,
    parameters::{Shape, transpose},
};

pub(in crate::sae) const D_IN: usize = 4;
pub(in crate::sae) const D_SAE: usize = 6;

pub(in crate::sae) fn wave(n: usize, scale: f64, step: f64, phase: f64) -> Vec<f32> {
    (0..n).map(|i| (scale * (step * i as f64 + phase).sin()) as f32).collect()
}

/// Parameters of every architecture, thresholds 0.1.
pub(in crate::sae) fn params(unit_decoder: bool) -> Parameters {
    let shape = Shape { threshold: true, gate: true, ..Shape::autoencoder(D_IN, D_SAE) };
    let mut p = Parameters::zeros(shape);
    p.w_enc = transpose(&wave(D_IN * D_SAE, 1.0, 0.9, 0.2), D_IN, D_SAE);
    p.w_dec = wave(D_SAE * D_IN, 1.0, 1.1, 0.3);
    p.b_dec = wave(D_IN, 0.1, 0.5, 0.4);
    p.b_enc = wave(D_SAE, 0.1, 0.3, 0.5);
    p.r_mag = wave(D_SAE, 0.1, 0.3, 0.6);
    p.b_mag = wave(D_SAE, 0.1, 0.3, 0.7);
    p.threshold.fill(0.1);
    if unit_decoder {
        p.w_dec.chunks_exact_mut(D_IN).for_each(normalise);
    }
    p
}

pub(in crate::sae) fn rows() -> Vec<f32> {
    wave(3 * D_IN, 1.0, 0.7, 0.1)
}

fn minus(x: &[f32], b: &[f32]) -> Vec<f32> {
    x.iter().zip(b.iter().cycle()).map(|(x, b)| x - b).collect()
}

/// Latents 0, 1 and 2 are dead; b_dec is subtracted from the input if `centred`.
pub(in crate::sae) fn run_on(
    p: &Parameters,
    objective: &mut dyn Objective,
    centred: bool,
    firing: &mut Firing,
) -> (Losses, Parameters) {
    let (x, target) = (rows(), minus(&rows(), &p.b_dec));
    let input = if centred { &target } else { &x };
    pass(p, (input, &target), objective, centred, firing)
}

/// Losses and gradients of a batch; `centred` says that b_dec was subtracted from its input.
pub(in crate::sae) fn pass(
    p: &Parameters,
    (input, target): (&[f32], &[f32]),
    objective: &mut dyn Objective,
    centred: bool,
    firing: &mut Firing,
) -> (Losses, Parameters) {
    let mut grads = Gradients::new(p.shape());
    let batch = Batch { input, target, centred, precision: DType::F32, sparsity: 1.0, step: 1 };
    (objective.accumulate(p, batch, firing, &mut grads), grads.dense().clone())
}

pub(in crate::sae) fn run(p: &Parameters, objective: &mut dyn Objective) -> (Losses, Parameters) {
    let mut firing = Firing { since: vec![9, 9, 9, 0, 0, 0], dead_after: 9 };
    run_on(p, objective, true, &mut firing)
}

/// Mean over the rows of the squared distance from the mean row.
fn variance() -> f64 {
    crate::kernels::columns::row_variance(&rows(), D_IN)
}

pub(in crate::sae) fn norm(t: &[f32]) -> f64 {
    t.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt()
}

pub(in crate::sae) fn close(found: f64, expected: f64, what: &str) {
    assert!(
        (found - expected).abs() <= 1e-5 * expected.abs().max(1.0),
        "{what}: {found}, expected {expected}"
    );
}

pub(in crate::sae) fn aux(coefficient: f64, form: AuxForm) -> Aux {
    Aux { coefficient, k: D_IN / 2, form }
}

pub(in crate::sae) const NEVER: Running = Running { decay: 0.5, start: u64::MAX, first: None };

fn saelens(among: Among) -> TopK {
    let selection = Selection { among, by_decoder_norm: true, ..Selection::of_rows(2) };
    TopK::new(selection, aux(1.0, AuxForm::Scaled), NEVER)
}

fn dictionary(among: Among, running: Running) -> TopK {
    let selection = Selection { among, ..Selection::of_rows(2) };
    TopK::new(selection, aux(1.0 / 32.0, AuxForm::Normalised), running)
}

#[test]
fn saelens_standard() {
    let (l, g) = run(&params(false), &mut Dense::new(Standard::new(true), 1.0));
    close(l.mse, 6.615_787, "mse");
    close(l.sparsity, 5.933_071, "l1");
    close(l.total, 12.548_859, "total");
    close(norm(&g.w_enc), 8.136_310, "W_enc");
    close(norm(&g.w_dec), 8.790_504, "W_dec");
}

/// The same survivors whether chosen by row or among the batch.
#[test]
fn saelens_topk_and_batchtopk() {
    for among in [Among::Row, Among::Batch] {
        let (l, g) = run(&params(false), &mut saelens(among));
        close(l.mse, 9.197_102, "mse");
        close(l.aux, 24.744_364, "aux");
        close(l.total, 33.941_467, "total");
        close(norm(&g.w_enc), 18.491_863, "W_enc");
        close(norm(&g.w_dec), 22.680_935, "W_dec");
    }
}

/// What is saved of such a training: an SAE that chooses by activation alone.
#[test]
fn trap_folding_decoder_norms_folds_the_threshold_too() {
    let p = params(false);
    let folded = |activation| {
        let mut sae = Sae::new(p.clone(), activation);
        fold_decoder_norm(&mut sae);
        sae
    };
    let top_k = folded(Activation::TopK { k: 2 });
    let latents = top_k.encode(&rows());
    let out = top_k.reconstruct(&rows(), &latents);
    for among in [Among::Row, Among::Batch] {
        let selection = Selection { among, by_decoder_norm: true, ..Selection::of_rows(2) };
        let running = Running::from_step(0);
        let mut objective = TopK::new(selection, aux(0.0, AuxForm::Scaled), running);
        let (losses, _) = run(&p, &mut objective);
        // Both have the same survivors here.
        close(norm(&minus(&out, &rows())).powi(2) / 3.0, losses.mse, "mse");
        if let Some(threshold) = objective.inference_threshold() {
            let smallest = latents.values().iter().copied().fold(f32::INFINITY, f32::min);
            close(threshold.into(), smallest.into(), "threshold");
        }
    }
}

#[test]
fn saelens_matryoshka() {
    let prefixes = [2, 6].map(|latents| Prefix { latents, weight: 1.0 });
    let mut objective = saelens(Among::Batch).matryoshka(prefixes.to_vec());
    let (l, g) = run(&params(false), &mut objective);
    close(l.mse, 9.197_102, "mse");
    close(l.aux, 24.744_364, "aux");
    close(l.total - l.mse - l.aux, 7.686_128, "inner");
    close(l.total, 41.627_594, "total");
    close(norm(&g.w_enc), 23.684_731, "W_enc");
    close(norm(&g.w_dec), 30.719_820, "W_dec");
}

#[test]
fn saelens_jumprelu() {
    let (l, g) = run(&params(false), &mut Dense::new(JumpRelu::new(0.5), 1.0));
    close(l.mse, 6.615_787, "mse");
    close(l.sparsity, 3.333_333, "l0");
    close(l.total, 9.949_121, "total");
    close(norm(&g.threshold), 0.020_452, "threshold");
    close(norm(&g.w_enc), 7.200_602, "W_enc");
    close(norm(&g.w_dec), 8.030_982, "W_dec");
}

#[test]
fn saelens_gated() {
    let (l, g) = run(&params(false), &mut Dense::new(Gated::new(GatedForm::Joint), 1.0));
    close(l.mse, 7.398_129, "mse");
    close(l.sparsity, 5.933_071, "l1");
    close(l.aux, 6.615_787, "aux");
    close(l.total, 19.946_987, "total");
    close(norm(&g.w_enc), 16.164_959, "W_enc");
    close(norm(&g.w_dec), 17.792_593, "W_dec");
}

#[test]
fn dictionary_learning_topk() {
    let mut objective = dictionary(Among::Row, Running::from_step(0));
    let (l, g) = run(&params(true), &mut objective);
    close(l.mse, 5.311_355, "l2");
    close(l.aux, 1.247_453, "aux");
    close(l.total, 5.350_338, "total");
    close(norm(&g.w_enc), 3.076_883, "W_enc");
    close(norm(&g.w_dec), 7.005_280, "W_dec");
    close(objective.memory()[0], 1.689_296, "threshold");
}

#[test]
fn dictionary_learning_jumprelu() {
    let jump = JumpRelu::new(0.5).with(Sparsity::Target { l0: 2.0 }, Window::Activation);
    let mut firing = Firing::new(D_SAE, 9);
    let (l, g) = run_on(&params(true), &mut Dense::new(jump, 1.0), false, &mut firing);
    close(l.mse, 3.672_519, "l2");
    close(l.total, 4.116_963, "total");
    close(norm(&g.threshold), 1.555_686, "threshold");
    close(norm(&g.w_enc), 3.886_174, "W_enc");
    close(norm(&g.w_dec), 5.703_636, "W_dec");
}

#[test]
fn dictionary_learning_gated() {
    let (l, g) = run(&params(true), &mut Dense::new(Gated::new(GatedForm::Detached), 1.0));
    close(l.mse, 4.555_249, "l2");
    close(l.sparsity, 4.215_789, "l1");
    close(l.aux, 4.204_308, "aux");
    close(l.total, 12.975_346, "total");
    close(norm(&g.w_enc), 10.180_984, "W_enc");
    close(norm(&g.w_dec), 7.263_139, "W_dec");
}

/// The mean over two groups of half of each one's error.
#[test]
fn dictionary_learning_matryoshka() {
    let prefixes = [2, 6].map(|latents| Prefix { latents, weight: 0.25 });
    let mut objective = dictionary(Among::Batch, NEVER).matryoshka(prefixes.to_vec());
    let (l, g) = run(&params(true), &mut objective);
    close(l.total - l.aux / 32.0, 2.651_046, "l2");
    close(l.aux, 1.247_453, "aux");
    close(l.total, 2.690_028, "total");
    close(norm(&g.w_enc), 1.424_326, "W_enc");
    close(norm(&g.w_dec), 3.343_172, "W_dec");
}

/// sparsify's fused encoder drops the auxiliary loss' gradient, which then moves decoder rows of
/// latents that cannot fire.
#[test]
fn trap_the_auxk_gradient_reaches_the_encoder() {
    let with = |coefficient| {
        let aux = aux(coefficient, AuxForm::Normalised);
        run(&params(true), &mut TopK::new(Selection::of_rows(2), aux, NEVER)).1
    };
    let (with, without) = (with(1.0), with(0.0));
    let dead = 2 * D_IN..3 * D_IN;
    assert!(norm(&without.w_enc[dead.clone()]) == 0.0);
    assert!(norm(&with.w_enc[dead]) > 0.1, "latent 2 is dead and must be moved");
}

/// openai/sparse_autoencoder sums the same error, and divides it by the variance of the batch.
#[test]
fn openai_topk() {
    let (l, _) = run(&params(true), &mut dictionary(Among::Row, NEVER));
    close(l.mse, 5.311_354, "sum over d");
    close(l.mse / variance(), 2.893_998, "mse over that of the mean");
}

/// sparsify divides both losses by the variance of the batch; its encoder's gradient of the
/// auxiliary loss is 0, which is a defect.
#[test]
fn sparsify_topk() {
    let with = |coefficient| {
        let aux = aux(coefficient, AuxForm::ScaledPositive);
        run(&params(true), &mut TopK::new(Selection::of_rows(2), aux, NEVER))
    };
    let ((plain, g), (revived, both)) = (with(0.0), with(1.0));
    close(plain.mse / variance(), 2.893_999, "fvu");
    close(norm(&g.w_enc) / variance(), 1.676_433, "W_enc of fvu");
    close(norm(&g.w_dec) / variance(), 3.816_967, "W_dec of fvu");
    close(revived.aux / variance(), 6.359_689, "aux");
    close(norm(&minus(&both.w_dec, &g.w_dec)) / variance(), 5.697_357, "W_dec of aux");
}

#[test]
fn survivors_of_topk() {
    let latents = Sae::new(params(true), Activation::TopK { k: 2 }).encode(&rows());
    let expected =
        [([3, 4], [1.6810, 1.6604]), ([0, 1], [2.1035, 1.8188]), ([4, 5], [1.8578, 1.5887])];
    for (row, (index, value)) in expected.into_iter().enumerate() {
        assert_eq!(latents.row(row).0, index);
        // The table has four digits.
        latents.row(row).1.iter().zip(value).for_each(|(f, v)| assert!((f - v).abs() <= 5e-5));
    }
}

/// The gradient of a block that keeps its active latents only is that of one that does not.
#[test]
fn sparse_and_dense_blocks_agree() {
    let (d_in, d_sae, rows) = (8, 64, 40);
    let shape = Shape { threshold: true, gate: true, ..Shape::autoencoder(d_in, d_sae) };
    let mut p = Parameters::zeros(shape);
    for (i, tensor) in p.tensors_mut().into_iter().enumerate() {
        *tensor = wave(tensor.len(), 0.5, 0.37 + i as f64, 0.2);
    }
    p.threshold = wave(d_sae, 0.05, 0.7, 0.1).iter().map(|t| t.abs()).collect();
    let input = wave(rows * d_in, 1.0, 1.3, 0.4);
    let run = |objective: &mut dyn Objective| {
        let mut grads = Gradients::new(p.shape());
        let (target, centred, precision) = (&input[..], true, DType::F32);
        let batch = Batch { input: &input, target, centred, precision, sparsity: 0.5, step: 3 };
        let losses = objective.accumulate(&p, batch, &mut Firing::new(d_sae, 9), &mut grads);
        (losses, grads.dense().clone())
    };
    type Make = fn() -> Box<dyn Sparsable>;
    let makes: [Make; 5] = [
        || Box::new(Dense::new(JumpRelu::new(0.2), 0.3)),
        || {
            Box::new(Dense::new(
                JumpRelu::new(0.2).with(Sparsity::Tanh { scale: 2.0 }, Window::PreActivation),
                0.3,
            ))
        },
        || Box::new(Dense::new(Standard::new(true), 0.3)),
        || Box::new(Dense::new(Gated::new(GatedForm::Joint), 0.3)),
        || Box::new(Dense::new(Gated::new(GatedForm::Detached), 0.3)),
    ];
    for (n, make) in makes.iter().enumerate() {
        let [dense, sparse] = [0, 1].map(|share| {
            let mut objective = make();
            objective.make_sparse(share == 1);
            run(objective.as_objective())
        });
        close(sparse.0.total, dense.0.total, "total");
        assert_eq!(sparse.0.l0, dense.0.l0);
        for (a, b) in sparse.1.tensors().into_iter().zip(dense.1.tensors()) {
            for (i, (a, b)) in a.iter().zip(b).enumerate() {
                assert!((a - b).abs() < 1e-4 * b.abs().max(1.0), "case {n} [{i}]: {a}, {b}");
            }
        }
    }
}

/// Every parameter's gradient against central differences of the loss.
#[test]
fn gradients_are_the_derivatives_of_the_loss() {
    type Make = fn() -> Box<dyn Objective>;
    let objectives: [(&str, Make); 7] = [
        ("standard", || Box::new(Dense::new(Standard::new(true), 0.3))),
        ("topk", || {
            Box::new(TopK::new(Selection::of_rows(2), aux(0.0, AuxForm::Normalised), NEVER))
        }),
        ("matryoshka", || {
            let prefixes = [3, 6].map(|latents| Prefix { latents, weight: 0.7 });
            let aux = aux(0.0, AuxForm::Normalised);
            Box::new(TopK::new(Selection::of_rows(2), aux, NEVER).matryoshka(prefixes.to_vec()))
        }),
        // With λ = 0 and away from the window the thresholds have no gradient.
        ("jumprelu", || Box::new(Dense::new(JumpRelu::new(1e-6), 0.0))),
        ("tanh", || {
            let tanh = Sparsity::Tanh { scale: 2.0 };
            Box::new(Dense::new(JumpRelu::new(1e-6).with(tanh, Window::PreActivation), 0.3))
        }),
        ("gated", || Box::new(Dense::new(Gated::new(GatedForm::Joint), 0.3))),
        ("annealed", || {
            let anneal = super::standard::Anneal { start: 0, steps: 10, end: 0.5 };
            Box::new(Dense::new(Standard::annealed(anneal), 0.3))
        }),
    ];
    for (name, make) in objectives {
        let p = params(true);
        let loss = |p: &Parameters| {
            let mut objective = make();
            objective.recall(&[4.0, 1.5]);
            let (losses, grads) =
                run_on(p, objective.as_mut(), true, &mut Firing::new(D_SAE, 1000));
            (losses.total, grads)
        };
        let (_, grads) = loss(&p);
        // Not the thresholds: their gradient is a straight-through estimate.
        for tensor in [0, 1, 2, 3, 5, 6] {
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

/// An objective whose blocks can be made to go either way.
trait Sparsable {
    fn make_sparse(&mut self, sparse: bool);
    fn as_objective(&mut self) -> &mut dyn Objective;
}

impl<E: super::dense::Elementwise<C>, const C: usize> Sparsable for Dense<E, C> {
    fn make_sparse(&mut self, sparse: bool) {
        self.one_in = if sparse { 1 } else { usize::MAX };
    }

    fn as_objective(&mut self) -> &mut dyn Objective {
        self
    }
}
