//! What a training costs, from its settings alone: arithmetic, memory, disk, reading.
//!
//! FLOP count what the kernels do, a multiplication and an addition as two; bytes of memory are
//! those that the process keeps for itself, without the shards, which the system maps and drops as
//! it likes.

use serde::Serialize;

use super::loader;
use crate::sae::{
    encode::BLOCK_BYTES,
    init::MEDIAN_ROWS,
    parameters::Shape,
    settings::{Architecture, Plan, TrainArgs},
    variant::{dense::SPARSE, gated::GatedForm},
};

/// Bytes of a number in memory (f32).
const NUMBER: u64 = 4;
/// Bytes of a number in a shard (f16).
const STORED: u64 = 2;
/// The program, its threads' stacks, records.
const PROGRAM: u64 = 32 << 20;
/// Bytes of an active latent of a row: index, activation, its gradient, its place by latent, and
/// both factors of the gradients in that order.
const ENTRY: u64 = 28;
/// Adam's FLOP a parameter, see [`crate::kernels::adam`], and two for the global norm.
const ADAM: f64 = 14.0 + 2.0;
/// Taking a decoder row's gradient perpendicular to it, and its norm back to 1, a number.
const UNIT_DECODER: f64 = 6.0 + 3.0;
/// The running mean of the weights, a number.
const EMA: f64 = 3.0;

/// The costs of a training.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Budget {
    /// Steps.
    pub steps: u64,
    /// Rows a step.
    pub step_rows: u64,
    /// Rows to train on, repetitions counted.
    pub tokens: u64,
    /// Numbers that are trained.
    pub parameters: u64,
    /// Active latents a row that arithmetic is counted for; absent where settings do not tell, and
    /// all are taken to be active.
    pub active: Option<f64>,
    /// FLOP a token.
    pub flop: Flop,
    /// Bytes of main memory.
    pub memory: Memory,
    /// Bytes to read for a token.
    pub read_per_token: u64,
    /// Bytes of a checkpoint.
    pub checkpoint: u64,
    /// Bytes of all checkpoints that are kept, one that is being written, and the result.
    pub disk: u64,
}

/// FLOP a token, those of whole batches and steps divided among their tokens.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Flop {
    /// The encoder's product, dense whatever the architecture: 2 d_in d_sae.
    pub encoder: f64,
    /// Reconstruction, 2 d_out for each active latent.
    pub decoder: f64,
    /// Gradients of activations, decoder and encoder.
    pub gradients: f64,
    /// A transcoder's linear path, there and back.
    pub skip: f64,
    /// b_dec's gradient through the encoder, clipping, Adam, decoder norms, the running mean.
    pub optimiser: f64,
    /// More while latents are dead, if all are: the auxiliary loss. Not part of the sum.
    pub auxiliary_at_most: f64,
}

impl Flop {
    /// All but the auxiliary loss.
    pub fn total(&self) -> f64 {
        self.encoder + self.decoder + self.gradients + self.skip + self.optimiser
    }

    /// What grows with the rows of a batch.
    pub fn of_rows(&self) -> f64 {
        self.total() - self.optimiser
    }
}

/// Bytes of main memory.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Memory {
    /// Bytes a parameter of what a checkpoint holds: itself, two moments, the running mean.
    pub state_bytes_per_parameter: u64,
    /// Parameters, and their running mean.
    pub parameters: u64,
    /// Adam's two moments.
    pub moments: u64,
    /// Gradients.
    pub gradients: u64,
    /// Weights as products read them: the encoder's, those of dead latents, if all are.
    pub laid_out: u64,
    /// Working space of a batch.
    pub batch: u64,
    /// Batches read ahead.
    pub loader: u64,
    /// The copy that is evaluated and saved at the end, and its encoder's transpose.
    pub result: u64,
    /// The program itself.
    pub program: u64,
}

impl Memory {
    /// All together.
    pub fn total(&self) -> u64 {
        self.parameters
            + self.moments
            + self.gradients
            + self.laid_out
            + self.batch
            + self.loader
            + self.result
            + self.program
    }
}

impl Budget {
    /// Of a training; `l0` is the mean of active latents a row where it is known and the settings do
    /// not decide it.
    pub fn new(train: &TrainArgs, plan: &Plan, l0: Option<f64>) -> Self {
        let (shape, steps) = (plan.shape, plan.schedule.steps);
        let active = train.sparsity.active(train.sae_arch, shape.d_in, steps).or(l0);
        let parameters = shape.parameters();
        let state = NUMBER * if plan.optimiser.ema.is_some() { 4 } else { 3 };
        let checkpoint = state * parameters + 8 * shape.d_sae as u64;
        let kept = u64::from(train.keep_checkpoints) + 1;
        let output = if plan.transcoder { shape.d_out } else { 0 };
        Self {
            steps,
            step_rows: plan.step_rows(),
            tokens: steps * plan.step_rows(),
            parameters,
            active,
            flop: flop(train, plan, active),
            memory: memory(train, plan, active),
            read_per_token: STORED * (shape.d_in + output) as u64,
            checkpoint,
            disk: kept * checkpoint + NUMBER * parameters,
        }
    }

    /// FLOP of all steps.
    pub fn total_flop(&self) -> f64 {
        self.flop.total() * self.tokens as f64
    }

    /// Bytes to read in all steps.
    pub fn read(&self) -> u64 {
        self.read_per_token.saturating_mul(self.tokens)
    }
}

/// The squared errors that an architecture has, and how many of them train the decoder.
fn reconstructions(train: &TrainArgs) -> (u64, u64) {
    match (train.sae_arch, train.sparsity.gated_form) {
        (Architecture::Gated, GatedForm::Detached) => (2, 1),
        (Architecture::Gated, GatedForm::Joint) => (2, 2),
        _ => (1, 1),
    }
}

fn flop(train: &TrainArgs, plan: &Plan, active: Option<f64>) -> Flop {
    let Shape { d_in, d_out, d_sae, skip, .. } = plan.shape;
    let [input, output, latents] = [d_in, d_out, d_sae].map(|n| n as f64);
    let (errors, trained) = reconstructions(train);
    // Many active latents take dense products, which do not ask which are.
    let sparse = |a: &f64| train.sae_arch.is_top_k() || a * SPARSE as f64 <= latents;
    let entries = active.filter(sparse).unwrap_or(latents);
    let encoder = 2.0 * input * latents;
    let through_encoder = if plan.centred { encoder / plan.batch as f64 } else { 0.0 };
    let ema = if plan.optimiser.ema.is_some() { EMA } else { 0.0 };
    let unit = if plan.optimiser.unit_decoder { UNIT_DECODER } else { 0.0 };
    let update = (ADAM + ema) * plan.shape.parameters() as f64 + unit * latents * output;
    Flop {
        encoder,
        decoder: 2.0 * entries * output * errors as f64,
        gradients: 2.0 * entries * (output * (errors + trained) as f64 + input),
        skip: if skip { 4.0 * input * output } else { 0.0 },
        optimiser: through_encoder + update / plan.step_rows() as f64,
        auxiliary_at_most: if train.has_auxiliary_loss() {
            let k = train.sparsity.k_aux(d_in).min(d_sae) as f64;
            encoder + 2.0 * k * (3.0 * output + input)
        } else {
            0.0
        },
    }
}

fn memory(train: &TrainArgs, plan: &Plan, active: Option<f64>) -> Memory {
    let Shape { d_in, d_out, d_sae, .. } = plan.shape;
    let [batch, d_in, d_out, d_sae] = [plan.batch, d_in, d_out, d_sae].map(|n| n as u64);
    let parameters = NUMBER * plan.shape.parameters();
    let ema = if plan.optimiser.ema.is_some() { parameters } else { 0 };
    let encoder = d_in * d_sae;
    let target = if plan.transcoder { d_out } else { 0 };
    // Where the target is not the input, the former less b_dec.
    let apart = if plan.centred { 0 } else { d_out };
    let of_rows = match train.sae_arch.is_top_k() {
        true => NUMBER * (d_in + apart) + of_top_k(train, plan),
        false => NUMBER * (d_in + apart) + of_dense(train, plan, active),
    };
    let blocks = match train.sae_arch {
        Architecture::TopK => 1,
        // Of the first batches half of all pre-activations may be among the largest.
        Architecture::BatchTopK | Architecture::Matryoshka => 3,
        _ => 1 + 2 * reconstructions(train).0,
    };
    let encoders = if train.has_auxiliary_loss() { 2 } else { 1 };
    let steady = Memory {
        state_bytes_per_parameter: NUMBER * if ema > 0 { 4 } else { 3 },
        parameters: parameters + ema,
        moments: 2 * parameters,
        gradients: parameters,
        laid_out: encoders * encoder * plan.precision.size_in_bytes() as u64,
        batch: batch * of_rows + blocks * BLOCK_BYTES as u64,
        loader: loader::BATCHES * batch * NUMBER * (d_in + target),
        result: parameters + NUMBER * encoder,
        program: PROGRAM,
    };
    // The rows of which the first b_dec is the median are gone before the first batch is there.
    let median = NUMBER * MEDIAN_ROWS as u64 * d_out;
    let later = steady.gradients + steady.laid_out + steady.batch + steady.loader + steady.result;
    Memory { batch: steady.batch + median.saturating_sub(later), ..steady }
}

/// Bytes a row of a batch beside its tiles: errors, gradients of the outputs and their tiles, active
/// latents.
fn of_top_k(train: &TrainArgs, plan: &Plan) -> u64 {
    let Shape { d_in, d_out, d_sae, .. } = plan.shape;
    let groups = train.sparsity.groups(train.sae_arch, d_sae) as u64;
    let (revival, k_aux) = if train.has_auxiliary_loss() {
        (1, train.sparsity.k_aux(d_in).min(d_sae) as u64)
    } else {
        (0, 0)
    };
    let k = train.sparsity.largest_k(d_in) as u64;
    NUMBER * d_out as u64 * (1 + 2 * (groups + revival)) + ENTRY * (k + k_aux)
}

/// The same of architectures whose blocks are dense, or sparse where few latents are active.
fn of_dense(train: &TrainArgs, plan: &Plan, active: Option<f64>) -> u64 {
    let most = plan.shape.d_sae.div_ceil(SPARSE) as f64;
    let entries = active.unwrap_or(most).min(most) as u64;
    let errors = reconstructions(train).0;
    errors * (NUMBER * 2 * plan.shape.d_out as u64 + ENTRY * entries)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Settings {
        #[command(flatten)]
        train: TrainArgs,
    }

    /// d_in 64 and 40,960 tokens in batches of 128.
    fn budget(arguments: &[&str]) -> Budget {
        let own = ["x", "--d-sae=512", "--tokens=40960", "--batch-size-train=128", "--top-k=8"];
        let train = Settings::parse_from(own.iter().chain(arguments)).train;
        Budget::new(&train, &train.plan(64, None, false, 0).unwrap(), None)
    }

    /// 2 · 64 · 512.
    const DENSE: f64 = 65_536.0;

    #[test]
    fn arithmetic_by_hand_for_each_architecture() {
        for (arguments, decoder, gradients) in [
            // 2 · 8 · 64 once, and for activations, decoder and encoder.
            (&["--sae-arch=topk"][..], 1024.0, 3072.0),
            (&["--sae-arch=batchtopk"], 1024.0, 3072.0),
            (&["--sae-arch=matryoshka"], 1024.0, 3072.0),
            (&["--sae-arch=jumprelu"], DENSE, 3.0 * DENSE),
            // 20 of 512 latents are few enough, 60 are not.
            (&["--sae-arch=jumprelu", "--l0-mode=target"], 2560.0, 7680.0),
            (&["--sae-arch=jumprelu", "--l0-mode=target", "--target-l0=60"], DENSE, 3.0 * DENSE),
            (&["--sae-arch=standard"], DENSE, 3.0 * DENSE),
            (&["--sae-arch=panneal"], DENSE, 3.0 * DENSE),
            // Two errors, of which the gate's does not train the decoder.
            (&["--sae-arch=gated"], 2.0 * DENSE, 4.0 * DENSE),
            (&["--sae-arch=gated", "--gated-form=joint"], 2.0 * DENSE, 5.0 * DENSE),
        ] {
            let flop = budget(arguments).flop;
            let found = (flop.encoder, flop.decoder, flop.gradients);
            assert_eq!(found, (DENSE, decoder, gradients), "{arguments:?}");
            let aux = if flop.decoder == 1024.0 { DENSE + 2.0 * 32.0 * 4.0 * 64.0 } else { 0.0 };
            assert_eq!(flop.auxiliary_at_most, aux, "{arguments:?}");
        }
        // b_dec once a batch; 16 for each of 2·64·512 + 512 + 64 numbers and 9 for half of the
        // first, once a step.
        let step = 16.0 * (DENSE + 576.0) + 9.0 * DENSE / 2.0;
        let flop = budget(&[]).flop;
        assert_eq!(flop.optimiser, DENSE / 128.0 + step / 128.0);
        assert_eq!(flop.total(), DENSE + 4096.0 + flop.optimiser);
        let four = budget(&["--accumulate=4", "--subtract-b-dec=false"]).flop;
        assert_eq!(four.optimiser, step / 512.0);
        assert_eq!(budget(&["--aux-coefficient=0"]).flop.auxiliary_at_most, 0.0);
    }

    #[test]
    fn a_falling_k_counts_as_its_mean() {
        assert_eq!(budget(&["--k-anneal=160", "--k-start=24"]).active, Some(8.0 + 8.0 / 2.0));
        assert_eq!(budget(&["--k-anneal=320", "--k-start=24"]).active, Some(16.0));
        assert_eq!(budget(&["--k-anneal=640", "--k-start=24"]).active, Some(20.0));
    }

    #[test]
    fn bytes_of_state_files_and_reading() {
        let plain = budget(&["--keep-checkpoints=1"]);
        assert_eq!((plain.steps, plain.tokens, plain.step_rows), (320, 40_960, 128));
        let weights = 4 * (2 * 64 * 512 + 512 + 64);
        assert_eq!(plain.memory.parameters + plain.memory.moments, 3 * weights);
        assert_eq!(plain.memory.state_bytes_per_parameter, 12);
        assert_eq!(plain.checkpoint, 3 * weights + 8 * 512);
        assert_eq!(plain.disk, 2 * plain.checkpoint + weights);
        assert_eq!((plain.read_per_token, plain.read()), (128, 128 * 40_960));
        let mean = budget(&["--weight-ema=0.999"]);
        assert_eq!(mean.memory.parameters, 2 * weights);
        assert_eq!(mean.checkpoint, 4 * weights + 8 * 512);
        let half = budget(&["--precision=bf16"]).memory;
        assert_eq!(plain.memory.laid_out, 2 * half.laid_out);
    }

    #[test]
    fn a_transcoder_reads_two_hooks() {
        let train = Settings::parse_from(["x", "--d-sae=512", "--tokens=40960"]).train;
        let plan = train.plan(64, Some(32), true, 0).unwrap();
        let budget = Budget::new(&train, &plan, None);
        assert_eq!(budget.read_per_token, 2 * (64 + 32));
        assert_eq!(budget.flop.skip, 4.0 * 64.0 * 32.0);
        assert_eq!(budget.flop.decoder, 2.0 * 8.0 * 32.0);
        assert_eq!(budget.parameters, 512 * 96 + 512 + 32 + 32 * 64);
    }
}
