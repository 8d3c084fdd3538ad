//! Known mistakes of other projects' trainings, each with a test of its name: `cargo nextest run -E
//! 'test(trap_)'`. Those of one function alone are beside it; here are those of several.

use candle_core::DType;
use clap::Parser;

use super::{
    Parameters,
    gradients::Gradients,
    init::{Start, geometric_median, initialise, normalise},
    parameters::{Shape, norm},
    rows::{Rows, Side},
    settings::{InputNorm, TrainArgs},
    trainer::{Optimiser, Rates, State, Trainer},
    variant::{
        Firing, Losses, Objective,
        dense::Dense,
        fixture::{self, D_IN, NEVER, close, params, run, run_on, wave},
        gated::{Gated, GatedForm},
        jumprelu::{JumpRelu, Sparsity, Window},
        topk::{Among, AuxForm, Selection, TopK},
    },
};
use crate::{
    kernels::adam::AdamConfig,
    shard::{ShardSet, Stats, reader::tests::write_run},
};

const ADAM: AdamConfig = AdamConfig { beta1: 0.0, beta2: 0.999, eps: 1e-8 };

#[derive(Parser)]
struct Settings {
    #[command(flatten)]
    train: TrainArgs,
}

fn settings(args: &str) -> TrainArgs {
    Settings::try_parse_from([""].into_iter().chain(args.split_whitespace())).unwrap().train
}

fn top_k(among: Among, coefficient: f64, form: AuxForm) -> TopK {
    let selection = Selection { among, ..Selection::of_rows(2) };
    TopK::new(selection, fixture::aux(coefficient, form), NEVER)
}

/// Losses and gradients of rows without a b_dec.
fn on(
    p: &Parameters,
    input: &[f32],
    objective: &mut dyn Objective,
    firing: &mut Firing,
) -> (Losses, Parameters) {
    fixture::pass(p, (input, input), objective, false, firing)
}

fn rows_of(tensor: &[f32], latents: std::ops::Range<usize>) -> &[f32] {
    &tensor[latents.start * D_IN..latents.end * D_IN]
}

/// `dictionary_learning` counts every index that top-k returns as fired, those of value 0 too.
#[test]
fn trap_a_latent_kept_with_activation_0_has_not_fired() {
    let mut p = Parameters::zeros(Shape::autoencoder(1, 3));
    p.w_enc = vec![1.0, 0.0, -2.0];
    for among in [Among::Row, Among::Batch] {
        let mut firing = Firing::new(3, 9);
        let (losses, _) = on(&p, &[1.0], &mut top_k(among, 0.0, AuxForm::Normalised), &mut firing);
        assert_eq!((losses.l0, &firing.since[..]), (1.0, &[0, 1, 1][..]), "{among:?}");
    }
}

/// The BatchTopK reference counts batches.
#[test]
fn trap_dead_is_a_number_of_tokens() {
    let mut firing = Firing::new(2, 100);
    firing.update(60, |latent| latent == 0);
    assert!(firing.dead().is_empty());
    firing.update(40, |latent| latent == 0);
    assert_eq!((firing.dead(), firing.dead_fraction()), (vec![1], 0.5));
    firing.update(1, |_| true);
    assert!(firing.dead().is_empty());
}

/// Latents 0 and 1 of the fixture are dead before its batch and fire in it.
#[test]
fn trap_a_latent_that_fires_in_this_batch_is_alive() {
    let p = params(true);
    let grads = |coefficient| run(&p, &mut top_k(Among::Row, coefficient, AuxForm::Normalised)).1;
    let (with, without) = (grads(1.0), grads(0.0));
    assert_eq!(rows_of(&with.w_dec, 0..2), rows_of(&without.w_dec, 0..2));
    assert_ne!(rows_of(&with.w_dec, 2..3), rows_of(&without.w_dec, 2..3));
}

/// OpenMOSS and the BatchTopK reference let the auxiliary loss move what it is to learn from; the
/// latter adds b_dec to its reconstruction besides.
#[test]
fn trap_the_auxk_target_is_a_constant_without_b_dec() {
    let p = params(true);
    for form in [AuxForm::Normalised, AuxForm::Scaled, AuxForm::ScaledPositive] {
        let grads = |coefficient| {
            let mut firing = Firing { since: vec![9, 9, 9, 0, 0, 0], dead_after: 9 };
            // Not centred: b_dec has a gradient through the outputs alone.
            run_on(&p, &mut top_k(Among::Row, coefficient, form), false, &mut firing).1
        };
        let (with, without) = (grads(1.0), grads(0.0));
        assert_eq!(rows_of(&with.w_enc, 3..6), rows_of(&without.w_enc, 3..6));
        assert_eq!(rows_of(&with.w_dec, 3..6), rows_of(&without.w_dec, 3..6));
        assert_eq!(with.b_dec, without.b_dec);
        assert_ne!(with.w_enc, without.w_enc);
    }
}

/// One row has no variance to divide by.
#[test]
fn trap_auxk_of_a_residual_without_variance_is_0_not_nan() {
    let p = params(true);
    let mut firing = Firing { since: vec![9; 6], dead_after: 9 };
    let objective = &mut top_k(Among::Row, 1.0, AuxForm::Normalised);
    let (losses, grads) = on(&p, &wave(D_IN, 1.0, 0.7, 0.1), objective, &mut firing);
    assert!(losses.total.is_finite() && losses.mse > 0.0);
    assert_eq!(losses.aux, 0.0);
    assert!(grads.tensors().iter().all(|t| t.iter().all(|g| g.is_finite())));
}

/// `dictionary_learning` marks an unset threshold with -1, above which all latents are.
#[test]
fn trap_an_unset_threshold_is_not_negative() {
    let mut objective = top_k(Among::Batch, 0.0, AuxForm::Normalised);
    run(&params(true), &mut objective);
    assert_eq!(objective.inference_threshold(), Some(0.0));
}

#[test]
fn trap_k_is_annealed_down_to_k_and_stays() {
    let selection = Selection { anneal: Some((4, 10)), ..Selection::of_rows(2) };
    assert_eq!([0, 5, 9, 10, 15, 1000].map(|step| selection.k_at(step)), [4, 3, 2, 2, 2, 2]);
}

/// `dictionary_learning` weighs each group's error by 1/n and then takes the mean of n: the errors
/// of the fixture as the settings give them, and not a quarter of them.
#[test]
fn trap_matryoshka_errors_are_not_divided_by_their_number_twice() {
    let args = "--sae-arch matryoshka --d-sae 6 --prefixes 0.33,1 --top-k 2 --k-aux 2 \
                --by-decoder-norm --aux-form scaled --aux-coefficient 1 --batch-size-train 3";
    let train = settings(args);
    let plan = train.plan(D_IN, None, false, 300).unwrap();
    let (losses, _) = run(&params(false), train.objective(&plan).unwrap().as_mut());
    close(losses.total, 9.197_102 + 7.686_128 + 24.744_364, "whole, first prefix and auxk");
}

/// The paper's second reconstruction trains the gate; SAELens' moves the decoder as well.
#[test]
fn trap_the_gates_reconstruction_leaves_the_decoder_alone() {
    let mut p = params(true);
    // Gates open, but no latent has a magnitude: only the gates' reconstruction is left.
    p.b_mag.fill(-9.0);
    let grads = |form| run(&p, &mut Dense::new(Gated::new(form), 0.0)).1;
    let (detached, joint) = (grads(GatedForm::Detached), grads(GatedForm::Joint));
    assert!(fixture::norm(&detached.b_enc) > 0.1);
    assert_eq!(fixture::norm(&detached.w_dec), 0.0);
    assert!(fixture::norm(&joint.w_dec) > 0.1);
}

/// A JumpReLU of one latent whose rows are just above its threshold of 0.001, trained for `steps`.
fn threshold_after(steps: u64, sparsity: Sparsity, lr: f64, precision: DType) -> f32 {
    let mut p = Parameters::zeros(Shape::jumprelu(1, 1));
    (p.w_enc, p.w_dec, p.threshold) = (vec![1.0], vec![1.0], vec![0.001]);
    let objective = JumpRelu::new(0.001).with(sparsity, Window::PreActivation);
    let (objective, state) = (Box::new(Dense::new(objective, 1.0)), State::new(p, 9, false));
    let mut trainer = Trainer::new(state, objective, Optimiser::adam(ADAM), false, precision);
    for _ in 0..steps {
        trainer.step(&mut [0.0012; 4], None, Rates { lr, sparsity: 1.0 }).unwrap();
    }
    trainer.state().params.threshold[0]
}

/// A logarithm moves a threshold of 0.001 a thousandth as far; one kept in bf16, whose numbers are
/// 8e-6 apart there, not at all.
#[test]
fn trap_thresholds_are_trained_directly_and_in_f32() {
    for precision in [DType::F32, DType::BF16] {
        let threshold = threshold_after(100, Sparsity::Step, 1e-6, precision);
        assert!((threshold - 0.0011).abs() < 2e-6, "{precision:?}: {threshold}");
    }
}

#[test]
fn trap_thresholds_stay_at_or_above_0() {
    // More latents are wanted than there are.
    let threshold = threshold_after(1, Sparsity::Target { l0: 2.0 }, 0.1, DType::F32);
    assert_eq!(threshold, 0.0);
}

/// The notebook recipe's coefficient rises until the last of its 128,000 steps.
#[test]
fn trap_the_sparsity_coefficient_is_whole_early() {
    for rows in [1000, 100_000, 100_000_000] {
        let train = settings("--sae-arch jumprelu --batch-size-train 10 --epochs 1");
        let schedule = train.plan(D_IN, None, false, rows).unwrap().schedule;
        let whole = (schedule.steps / 5).min(10_000);
        assert!(schedule.sparsity(whole - 2) < 1.0 && schedule.sparsity(whole) == 1.0);
    }
}

/// One step with a learning rate that would move norms by half, d_in and d_sae being different.
fn stepped(ema: Option<f64>) -> (Parameters, State) {
    let shape = Shape::autoencoder(3, 7);
    let sample = wave(60, 1.0, 0.7, 0.1);
    let start = initialise(shape, &sample, 1, Start::TIED);
    let state = State::new(start.clone(), 9, ema.is_some());
    let optimiser = Optimiser { ema, ..Optimiser::adam(ADAM) };
    let objective = Box::new(top_k(Among::Row, 0.0, AuxForm::Normalised));
    let mut trainer = Trainer::new(state, objective, optimiser, true, DType::F32);
    trainer.step(&mut sample.clone(), None, Rates { lr: 0.5, sparsity: 1.0 }).unwrap();
    (start, trainer.state().clone())
}

fn assert_unit_latents(p: &Parameters) {
    for (latent, row) in p.w_dec.chunks_exact(p.d_out).enumerate() {
        assert!((norm(row) - 1.0).abs() < 1e-5, "latent {latent}: {}", norm(row));
    }
}

/// The notebook recipe, SAINT and e2e_sae give each output channel norm 1.
#[test]
fn trap_decoder_norms_are_of_latents_not_of_channels() {
    let (start, after) = stepped(None);
    assert_ne!(start.w_dec, after.params.w_dec);
    assert_unit_latents(&after.params);
}

/// As above: what is removed from the gradient lies along latents.
#[test]
fn trap_decoder_gradients_are_projected_by_latent() {
    let p = initialise(Shape::autoencoder(3, 7), &[0.0; 3], 1, Start::TIED);
    let mut grads = Gradients::new(p.shape());
    let before = wave(21, 1.0, 0.9, 0.2);
    grads.dense().w_dec.copy_from_slice(&before);
    grads.squared_norm(Some(&p.w_dec));
    let latents = grads.tensors().w_dec.chunks_exact(3).zip(p.w_dec.chunks_exact(3));
    for ((grad, row), before) in latents.zip(before.chunks_exact(3)) {
        let along = |g: &[f32]| g.iter().zip(row).map(|(g, w)| g * w).sum::<f32>();
        assert!(along(grad).abs() < 1e-6);
        let rest = before.iter().zip(row).map(|(g, w)| g - along(before) * w);
        grad.iter().zip(rest).for_each(|(g, rest)| assert!((g - rest).abs() < 1e-6));
    }
}

/// OpenAI averages before the step, which then lags, and takes norms before it: its decoder rows
/// end with other norms than 1.
#[test]
fn trap_the_running_mean_is_of_the_step_just_made_and_has_unit_latents() {
    let (start, after) = stepped(Some(0.5));
    let mean = after.ema.as_ref().unwrap();
    let half = |a: &[f32], b: &[f32]| -> Vec<f32> {
        a.iter().zip(b).map(|(a, b)| 0.5 * a + 0.5 * b).collect()
    };
    assert_eq!(mean.w_enc, half(&start.w_enc, &after.params.w_enc));
    let mut expected = half(&start.w_dec, &after.params.w_dec);
    expected.chunks_exact_mut(3).for_each(normalise);
    assert_eq!(mean.w_dec, expected);
    assert_unit_latents(mean);
}

/// SAINT starts b_dec at the raw rows' mean although it trains on other units.
#[test]
fn trap_b_dec_starts_in_the_units_of_the_scaled_target() {
    let dir = tempfile::tempdir().unwrap();
    write_run(dir.path(), &[5, 3], 6);
    let side = |scale| Side { set: ShardSet::open(dir.path(), "h").unwrap(), scale };
    let rows = Rows::new(side(9.0), Some(side(0.5)), 0.0).unwrap();
    let mut sample = vec![];
    rows.output().gather(&rows.sample(1), &mut sample);
    let p = initialise(Shape::autoencoder(6, 7), &sample, 1, Start::TIED);
    // The middle of rows 0 to 7, each with its column's eighths.
    for (c, b) in p.b_dec.iter().enumerate() {
        assert!((b - 0.5 * (3.5 + c as f32 / 8.0)).abs() < 1e-3, "{:?}", p.b_dec);
    }
    assert_eq!(p.b_dec, geometric_median(&sample, 6));
}

/// The notebook recipe divides by a mean of norms where a mean of squares is meant;
/// matryoshka-saes' running norm begins at 0.
#[test]
fn trap_the_input_scale_is_of_squares_and_of_all_rows() {
    let mut stats = Stats::new(2);
    stats.add(&[3.0, 4.0, 0.0, 1.0]);
    let scale = |norm: InputNorm| f64::from(norm.scale(&stats, 2));
    close(scale(InputNorm::Unit), (2.0 / 26.0_f64).sqrt(), "mean square 1");
    close(scale(InputNorm::Sqrt), 2.0_f64.sqrt() / 3.0, "mean norm √d");
    assert_eq!(scale(InputNorm::None), 1.0);
}
