//! Training on rows whose true features are known.

use candle_core::DType;

use super::{
    init::{Start, initialise, normalise},
    parameters::Shape,
    random::{Normal, Purpose},
    schedule::{Decay, Schedule},
    trainer::{Optimiser, Rates, State, Trainer},
    variant::{
        Objective,
        dense::Dense,
        jumprelu::JumpRelu,
        standard::Standard,
        threshold::Running,
        topk::{Among, Aux, AuxForm, Selection, TopK},
    },
};
use crate::kernels::adam::AdamConfig;

const D_IN: usize = 64;
const FEATURES: usize = 128;
const D_SAE: usize = 256;
const BATCH: usize = 512;
const ADAM: AdamConfig = AdamConfig { beta1: 0.9, beta2: 0.999, eps: 1e-8 };

/// Rows that are sums of few directions of a fixed dictionary.
struct Planted {
    dictionary: Vec<f32>,
    probability: Vec<f64>,
    rng: Normal,
}

impl Planted {
    /// Frequencies fall mildly (Zipf with exponent 1/2); about 5 features are active in a row.
    fn new() -> Self {
        let mut rng = Normal::new(11, Purpose::Decoder);
        let mut dictionary = vec![0.0; FEATURES * D_IN];
        rng.fill(&mut dictionary);
        dictionary.chunks_exact_mut(D_IN).for_each(normalise);
        let weight: Vec<f64> = (0..FEATURES).map(|i| (i as f64 + 5.0).powf(-0.5)).collect();
        let sum: f64 = weight.iter().sum();
        let probability = weight.iter().map(|w| 5.0 * w / sum).collect();
        Self { dictionary, probability, rng }
    }

    fn rows(&mut self, n: usize) -> Vec<f32> {
        let mut rows = vec![0.0; n * D_IN];
        for row in rows.chunks_exact_mut(D_IN) {
            for (direction, p) in self.dictionary.chunks_exact(D_IN).zip(&self.probability) {
                if self.rng.uniform() < *p {
                    let size = 0.5 + self.rng.uniform() as f32;
                    row.iter_mut().zip(direction).for_each(|(x, d)| *x += size * d);
                }
            }
        }
        rows
    }

    /// The share of features with a decoder row of cosine above 0.9.
    fn recovered(&self, decoder: &[f32]) -> f64 {
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        let found =
            |feature: &&[f32]| decoder.chunks_exact(D_IN).any(|row| dot(row, feature) > 0.9);
        self.dictionary.chunks_exact(D_IN).filter(found).count() as f64 / FEATURES as f64
    }
}

fn train(
    objective: Box<dyn Objective>,
    threshold: Option<f32>,
    steps: u64,
    lr: f64,
) -> (Trainer, Planted, f64) {
    let mut planted = Planted::new();
    // Mean square norm 1, as the stage scales its inputs.
    let sample = planted.rows(8192);
    let scale = (8192.0 / sample.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>()).sqrt() as f32;
    let scaled = |rows: Vec<f32>| rows.into_iter().map(|x| x * scale).collect::<Vec<_>>();
    let shape = Shape { threshold: threshold.is_some(), ..Shape::autoencoder(D_IN, D_SAE) };
    let start = Start { tied: true, threshold: threshold.unwrap_or(0.0) };
    let params = initialise(shape, &scaled(sample), 3, start);
    let optimiser = Optimiser::adam(ADAM);
    let mut trainer =
        Trainer::new(State::new(params, 50_000, false), objective, optimiser, true, DType::F32);
    let schedule = Schedule {
        steps,
        warmup: 100,
        decay: Decay::Linear,
        decay_share: 0.2,
        end: 0.0,
        sparsity_warmup: steps / 5,
    };
    let mut l0 = 0.0;
    for step in 0..steps {
        let mut rows = scaled(planted.rows(BATCH));
        let rates = Rates { lr: lr * schedule.lr(step), sparsity: schedule.sparsity(step) };
        l0 = trainer.step(&mut rows, None, rates).unwrap().l0;
    }
    (trainer, planted, l0)
}

fn top_k(among: Among) -> Box<TopK> {
    let aux = Aux { coefficient: 1.0 / 32.0, k: D_IN / 2, form: AuxForm::Normalised };
    let selection = Selection { among, ..Selection::of_rows(5) };
    Box::new(TopK::new(selection, aux, Running::from_step(100)))
}

#[test]
fn topk_and_batchtopk_find_planted_features() {
    for among in [Among::Row, Among::Batch] {
        let (trainer, planted, l0) = train(top_k(among), None, 4000, 1e-3);
        let params = &trainer.state().params;
        let recovered = planted.recovered(&params.w_dec);
        assert!(recovered >= 0.9, "{among:?} recovered {recovered}, L0 {l0}");
        let norms = params.decoder_norms();
        assert!(norms.iter().all(|n| (n - 1.0).abs() < 1e-5), "rows are latents, of norm 1");
        let threshold = trainer.inference_threshold();
        assert!(threshold.is_none_or(|t| t > 0.0 && t < 1.0), "{threshold:?}");
    }
}

#[test]
fn l1_finds_planted_features() {
    let (trainer, planted, l0) =
        train(Box::new(Dense::new(Standard::new(true), 0.1)), None, 3000, 2e-3);
    let recovered = planted.recovered(&trainer.state().params.w_dec);
    assert!(recovered >= 0.9, "recovered {recovered}, L0 {l0}");
}

#[test]
fn jumprelu_becomes_sparse_and_finds_planted_features() {
    let objective = Dense::new(JumpRelu::new(0.05), 0.01);
    let (trainer, planted, l0) = train(Box::new(objective), Some(0.05), 3000, 2e-3);
    let recovered = planted.recovered(&trainer.state().params.w_dec);
    assert!(recovered >= 0.9 && l0 < 10.0, "recovered {recovered}, L0 {l0}");
}

/// The same steps on one thread and on two end with the same bits.
#[test]
fn threads_do_not_change_the_result() {
    let run = |threads: usize, among| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let mut planted = Planted::new();
            let shape = Shape::autoencoder(D_IN, D_SAE);
            let params = initialise(shape, &planted.rows(3000), 3, Start::TIED);
            let (state, optimiser) = (State::new(params, 2000, true), Optimiser::adam(ADAM));
            let optimiser = Optimiser { ema: Some(0.9), ..optimiser };
            let mut trainer = Trainer::new(state, top_k(among), optimiser, true, DType::F32);
            for _ in 0..20 {
                let rates = Rates { lr: 1e-3, sparsity: 1.0 };
                trainer.step(&mut planted.rows(700), None, rates).unwrap();
            }
            trainer.state().clone()
        })
    };
    for among in [Among::Row, Among::Batch] {
        assert_eq!(run(1, among), run(2, among));
    }
}
