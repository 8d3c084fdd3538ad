//! New directions for dead latents (Bricken et al. 2023, "Towards Monosemanticity", appendix).
//!
//! A dead latent takes the direction of a row that is reconstructed badly, drawn with a probability
//! proportional to the square of its loss: the decoder's row is the direction itself, the encoder's
//! a fifth as long as those of living latents are on average. Its biases and Adam's moments start
//! from zero, in the state itself and in the running mean of the weights.

use rayon::prelude::*;

use super::{
    Parameters,
    init::normalise,
    parameters::norm,
    random::{Normal, Purpose},
    trainer::State,
};

/// Length of a new encoder row, relative to those of living latents.
const ENCODER_LENGTH: f32 = 0.2;

/// Rows that dead latents may take their directions from.
#[derive(Clone, Copy, Debug)]
pub struct Candidates<'a> {
    /// The encoder's inputs as it sees them, `[rows, d_in]`.
    pub input: &'a [f32],
    /// What is to be reconstructed, less b_dec, `[rows, d_out]`.
    pub target: &'a [f32],
    /// Squared error of each row.
    pub losses: &'a [f64],
}

/// Gives the dead latents of `state` new directions, each from a row of its own, and returns how
/// many there were; with more dead latents than rows the last ones wait. `threshold` is what new
/// latents must exceed. The draw depends on `seed` and on the steps made.
pub fn resample(state: &mut State, candidates: Candidates<'_>, threshold: f32, seed: u64) -> usize {
    let dead = state.firing.dead();
    let rows = draw(candidates.losses, dead.len(), seed, state.step);
    let length = ENCODER_LENGTH * living_length(&state.params, &dead);
    let (d_in, d_out) = (state.params.d_in, state.params.d_out);
    let count = dead.len().min(rows.len());
    for (latent, row) in dead.into_iter().zip(rows) {
        let mut encoder = candidates.input[row * d_in..][..d_in].to_vec();
        let mut decoder = candidates.target[row * d_out..][..d_out].to_vec();
        normalise(&mut encoder);
        encoder.iter_mut().for_each(|x| *x *= length);
        normalise(&mut decoder);
        for params in [Some(&mut state.params), state.ema.as_mut()].into_iter().flatten() {
            rewire(params, latent, &encoder, &decoder, threshold);
        }
        for moments in [&mut state.first, &mut state.second] {
            rewire(moments, latent, &vec![0.0; d_in], &vec![0.0; d_out], 0.0);
        }
        state.firing.since[latent] = 0;
    }
    count
}

/// Sets everything that belongs to one latent.
fn rewire(p: &mut Parameters, latent: usize, encoder: &[f32], decoder: &[f32], threshold: f32) {
    p.w_enc[latent * p.d_in..][..p.d_in].copy_from_slice(encoder);
    p.w_dec[latent * p.d_out..][..p.d_out].copy_from_slice(decoder);
    let own = [(&mut p.b_enc, 0.0), (&mut p.threshold, threshold), (&mut p.r_mag, 0.0)];
    for (tensor, value) in own.into_iter().chain([(&mut p.b_mag, 0.0)]) {
        tensor.get_mut(latent).into_iter().for_each(|x| *x = value);
    }
}

/// Mean length of the encoder rows of latents that are not in `dead`, which ascends; 1 if there are
/// none.
fn living_length(params: &Parameters, dead: &[usize]) -> f32 {
    let lengths: Vec<f32> = params
        .w_enc
        .par_chunks(params.d_in)
        .enumerate()
        .filter(|(latent, _)| dead.binary_search(latent).is_err())
        .map(|(_, row)| norm(row))
        .collect();
    if lengths.is_empty() {
        return 1.0;
    }
    (lengths.iter().map(|l| f64::from(*l)).sum::<f64>() / lengths.len() as f64) as f32
}

/// Up to `n` different rows, each drawn with a probability proportional to the square of its loss
/// (Efraimidis & Spirakis 2006); rows without a loss are not drawn.
fn draw(losses: &[f64], n: usize, seed: u64, step: u64) -> Vec<usize> {
    let mut random = Normal::new(seed, Purpose::Resampling).at(step);
    // The exponentials' minimum falls on each row with the wanted probability.
    let mut keys: Vec<(f64, usize)> = losses
        .iter()
        .enumerate()
        .map(|(row, loss)| (-random.uniform().ln() / (loss * loss), row))
        .filter(|(key, _)| key.is_finite())
        .collect();
    keys.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    keys.into_iter().take(n).map(|(_, row)| row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sae::parameters::Shape;

    fn state(d_sae: usize) -> State {
        let shape = Shape { threshold: true, ..Shape::autoencoder(3, d_sae) };
        let mut params = Parameters::zeros(shape);
        for tensor in params.tensors_mut() {
            tensor.iter_mut().enumerate().for_each(|(i, x)| *x = 1.0 + (i as f32 * 0.7).sin());
        }
        let mut state = State::new(params.clone(), 10, true);
        (state.first, state.second) = (params.clone(), params);
        state
    }

    /// The rows and the states before and after: latents 1 and 3 of four were dead.
    fn resampled() -> [State; 2] {
        let mut state = state(4);
        state.firing.since = vec![0, 11, 3, 12];
        let before = state.clone();
        let input = [3.0, 0.0, 4.0, 0.0, 2.0, 0.0, 9.0, 9.0, 9.0];
        let target = [0.0, 0.0, 2.0, 5.0, 0.0, 0.0, 9.0, 9.0, 9.0];
        // The last row is reconstructed perfectly.
        let losses = [1.0, 3.0, 0.0];
        let candidates = Candidates { input: &input, target: &target, losses: &losses };
        assert_eq!(resample(&mut state, candidates, 0.25, 7), 2);
        let after = state.clone();
        assert_eq!(resample(&mut state, candidates, 0.25, 7), 0, "nobody is dead any more");
        [before, after]
    }

    /// `dictionary_learning`'s p-annealing writes to a copy of the weights.
    #[test]
    fn trap_resampling_writes_to_the_weights_themselves() {
        let [before, state] = resampled();
        let living =
            0.5 * [0, 2].map(|l| norm(&before.params.w_enc[3 * l..][..3])).iter().sum::<f32>();
        for params in [&state.params, state.ema.as_ref().unwrap()] {
            let mut rows: Vec<_> = [1, 3].map(|l| params.w_dec[3 * l..][..3].to_vec()).into();
            rows.sort_by(|a, b| b[0].total_cmp(&a[0]));
            assert_eq!(rows, [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]);
            for latent in [1, 3] {
                assert!((norm(&params.w_enc[3 * latent..][..3]) - 0.2 * living).abs() < 1e-6);
                assert_eq!((params.b_enc[latent], params.threshold[latent]), (0.0, 0.25));
            }
        }
        assert_eq!(state.firing.since, [0, 0, 3, 0]);
    }

    /// matryoshka-saes moves latents and leaves Adam's moments where they were.
    #[test]
    fn trap_adam_moments_of_resampled_latents_start_from_zero() {
        let [_, state] = resampled();
        for moments in [&state.first, &state.second] {
            for latent in [1, 3] {
                assert_eq!(moments.w_enc[3 * latent..][..3], [0.0; 3]);
                assert_eq!(moments.w_dec[3 * latent..][..3], [0.0; 3]);
                assert_eq!((moments.b_enc[latent], moments.threshold[latent]), (0.0, 0.0));
            }
        }
    }

    #[test]
    fn living_latents_stay_as_they_are() {
        let [before, state] = resampled();
        for (now, then) in [&state.params, &state.first, &state.second].into_iter().zip([
            &before.params,
            &before.first,
            &before.second,
        ]) {
            for latent in [0, 2] {
                assert_eq!(now.w_enc[3 * latent..][..3], then.w_enc[3 * latent..][..3]);
                assert_eq!(now.w_dec[3 * latent..][..3], then.w_dec[3 * latent..][..3]);
                assert_eq!(now.b_enc[latent], then.b_enc[latent]);
            }
            assert_eq!(now.b_dec, then.b_dec);
        }
    }

    #[test]
    fn rows_are_drawn_by_the_square_of_their_loss_without_repetition() {
        let losses = [1.0, 2.0, 0.0, 3.0];
        let n = 4000;
        let mut first = [0_u32; 4];
        for step in 0..n {
            let rows = draw(&losses, 9, 1, step);
            first[rows[0]] += 1;
            let mut sorted = rows.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, [0, 1, 3]);
            assert_eq!(rows, draw(&losses, 9, 1, step));
        }
        for (count, share) in first.iter().zip([1.0 / 14.0, 4.0 / 14.0, 0.0, 9.0 / 14.0]) {
            assert!((f64::from(*count) / n as f64 - share).abs() < 0.03, "{first:?}");
        }
    }
}
