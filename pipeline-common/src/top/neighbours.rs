//! Latents that lie or fire like another one.

use super::{record::Neighbour, tally::Tally};
use crate::{
    kernels::vector::{max, simd},
    sae::{
        Sae,
        pairs::{Vectors, unit_rows},
    },
};

/// Neighbours of each latent of either kind.
const COUNT: usize = 10;
/// Products looked at together: those whose largest is too small are skipped.
const CHUNK: usize = 64;

/// The neighbours of all latents.
pub(super) struct Neighbours {
    /// By the cosine of decoder rows.
    pub decoder: Vec<Vec<Neighbour>>,
    /// By the cosine of the sets of rows in which they are active, an estimate.
    pub coactive: Vec<Vec<Neighbour>>,
}

impl Neighbours {
    /// Compares all with all; `advance` is told how many latents more are done, each counted twice.
    pub fn find<E>(
        sae: &Sae,
        (tally, rows): (&Tally, u64),
        mut advance: impl FnMut(usize) -> Result<(), E>,
    ) -> Result<Self, E> {
        let p = &sae.params;
        let all: Vec<usize> = (0..p.d_sae).collect();
        let decoder = nearest(&unit_rows(&p.w_dec, p.d_out), &all, |_, _| 0.0, &mut advance)?;
        let fired = |latent: usize| tally.latents[latent].fired;
        let sketches = Vectors {
            count: p.d_sae,
            width: tally.sketch.counts().len() / p.d_sae.max(1),
            write: |latent: usize, out: &mut [f32]| {
                tally.sketch.direction(latent, fired(latent), out);
            },
        };
        let chance = |a, b| tally.sketch.chance(p.d_sae, (fired(a), fired(b)), rows);
        let alive: Vec<usize> = (0..p.d_sae).filter(|latent| fired(*latent) > 0).collect();
        let mut coactive = vec![vec![]; p.d_sae];
        let found = nearest(&sketches, &alive, chance, &mut advance)?;
        alive.iter().zip(found).for_each(|(latent, found)| coactive[*latent] = found);
        Ok(Self { decoder, coactive })
    }
}

/// For each of `chosen` the largest cosines with others above `floor`.
fn nearest<E>(
    vectors: &Vectors<impl Fn(usize, &mut [f32]) + Sync>,
    chosen: &[usize],
    floor: impl Fn(usize, usize) -> f32 + Sync,
    advance: impl FnMut(usize) -> Result<(), E>,
) -> Result<Vec<Vec<Neighbour>>, E> {
    let mut nearest = vec![vec![]; chosen.len()];
    let visit = |nearest: &mut Vec<Neighbour>, latent: usize, first: usize, row: &mut [f32]| {
        for (n, chunk) in row.chunks(CHUNK).enumerate() {
            let largest = simd(
                #[inline(always)]
                || max(chunk),
            );
            if largest <= least(nearest) {
                continue;
            }
            for (other, cosine) in (first + n * CHUNK..).zip(chunk) {
                if *cosine > least(nearest) && other != latent && *cosine > floor(latent, other) {
                    offer(nearest, Neighbour { latent: other as u32, cosine: cosine.min(1.0) });
                }
            }
        }
    };
    vectors.products((chosen, &mut nearest), visit, advance)?;
    Ok(nearest)
}

/// What a cosine must exceed to be among the nearest.
fn least(nearest: &[Neighbour]) -> f32 {
    if nearest.len() == COUNT { nearest[COUNT - 1].cosine } else { 0.0 }
}

fn offer(nearest: &mut Vec<Neighbour>, new: Neighbour) {
    nearest.truncate(COUNT - 1);
    let at = nearest.partition_point(|kept| kept.cosine >= new.cosine);
    nearest.insert(at, new);
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;
    use crate::{
        sae::{Activation, weights::tests::random_sae},
        top::tally::Choice,
    };

    #[test]
    fn neighbours_are_those_of_the_plain_loop() {
        let (d_in, d_sae) = (6, 300);
        let sae = random_sae(d_in, d_sae, Activation::Relu);
        let tally = Tally::new(d_sae, Choice { top_n: 1, seed: 0 });
        let mut done = 0;
        let Ok(found) = Neighbours::find(&sae, (&tally, 0), |n| {
            done += n;
            Ok::<_, Infallible>(())
        });
        assert_eq!(done, d_sae, "no latent is alive");
        let row = |l: usize| &sae.params.w_dec[l * d_in..][..d_in];
        for (latent, found) in found.decoder.iter().enumerate() {
            let cosine =
                |other: usize| row(latent).iter().zip(row(other)).map(|(a, b)| a * b).sum::<f32>();
            let mut all: Vec<(u32, f32)> = (0..d_sae)
                .filter(|other| *other != latent)
                .map(|other| (other as u32, cosine(other)))
                .collect();
            all.sort_by(|a, b| b.1.total_cmp(&a.1));
            assert_eq!(found.len(), COUNT);
            for (found, (other, cosine)) in found.iter().zip(all) {
                assert!((found.cosine - cosine).abs() < 1e-5);
                assert!(found.latent == other || (cosine - found.cosine).abs() < 1e-6);
            }
        }
        assert!(found.coactive.iter().all(Vec::is_empty));
    }
}
