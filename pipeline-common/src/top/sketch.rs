//! Which latents are active in the same rows, estimated in a fixed number of bytes.
//!
//! Each latent has a count sketch (Charikar, Chen & Farach-Colton 2002) of the set of its rows: every row
//! adds 1 or -1, whichever its hash says, to one of `width` counters, the same for all latents. The inner
//! product of two sketches estimates the number of rows that both have, without bias and with a variance
//! of at most (nᵢ nⱼ + nᵢⱼ²) / width. Sketches of parts of the rows add up to that of all.

use rayon::prelude::*;

use super::signature::mix;

/// All counters together.
const BYTES: usize = 256 << 20;
/// Fewest and most counters of a latent.
const WIDTHS: (usize, usize) = (128, 4096);
/// Least logarithm of the number of latents that a pair must stand out from.
const LEAST: f64 = 4.5;

/// The sketches of all latents, `[d_sae, width]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sketch {
    width: usize,
    counts: Vec<i32>,
}

/// What a row adds, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    counter: u32,
    sign: i32,
}

impl Sketch {
    /// Counters of each of `d_sae` latents: a power of two.
    pub fn width(d_sae: usize) -> usize {
        let fits = BYTES / size_of::<i32>() / d_sae.max(1);
        (fits.max(1).next_power_of_two() / if fits.is_power_of_two() { 1 } else { 2 })
            .clamp(WIDTHS.0, WIDTHS.1)
    }

    /// Nothing seen yet.
    pub fn new(d_sae: usize) -> Self {
        let width = Self::width(d_sae);
        Self { width, counts: vec![0; d_sae * width] }
    }

    /// From counters as [`Self::counts`] gives them; `None` if their number is another.
    pub fn from_counts(d_sae: usize, counts: Vec<i32>) -> Option<Self> {
        let width = Self::width(d_sae);
        (counts.len() == d_sae * width).then_some(Self { width, counts })
    }

    /// The counters, latent by latent.
    pub fn counts(&self) -> &[i32] {
        &self.counts
    }

    /// What row `row` of the run does to the sketch of a latent that is active in it.
    pub fn place(&self, row: u64) -> Place {
        let hash = mix(row);
        let sign = if hash >> 63 == 0 { 1 } else { -1 };
        Place { counter: (hash as usize & (self.width - 1)) as u32, sign }
    }

    /// The sketches one by one.
    pub fn par_latents(&mut self) -> impl IndexedParallelIterator<Item = &mut [i32]> {
        self.counts.par_chunks_mut(self.width)
    }

    /// Adds the rows of another part.
    pub fn merge(&mut self, other: &Self) {
        self.counts.par_iter_mut().zip(&other.counts).for_each(|(a, b)| *a += b);
    }

    /// Writes a latent's sketch over the root of the number of its rows: products of two of these estimate
    /// the cosine of the two sets of rows.
    pub fn direction(&self, latent: usize, fired: u64, out: &mut [f32]) {
        let scale = 1.0 / (fired.max(1) as f64).sqrt();
        let counts = &self.counts[latent * self.width..][..self.width];
        out.iter_mut().zip(counts).for_each(|(x, n)| *x = (f64::from(*n) * scale) as f32);
    }

    /// What an estimate must exceed to tell something, for two sets of `a` and `b` of `rows` rows: what
    /// independent sets have in common, and more than that as hardly one of `d_sae` estimates errs by
    /// (Bernstein's bound with a failure for each other latent).
    pub fn chance(&self, d_sae: usize, (a, b): (u64, u64), rows: u64) -> f32 {
        let doubt = (d_sae as f64).ln().max(LEAST);
        let size = (a as f64 * b as f64).sqrt().max(1.0);
        let error = (2.0 * doubt / self.width as f64).sqrt() + doubt / (3.0 * size);
        (size / rows.max(1) as f64 + error) as f32
    }
}

/// Adds a row to a latent's sketch.
pub fn add(sketch: &mut [i32], place: Place) {
    sketch[place.counter as usize] += place.sign;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_counters_fit_and_a_small_sae_has_no_more_than_it_needs() {
        for (d_sae, width) in [(1, 4096), (16_384, 4096), (20_000, 2048), (65_536, 1024)] {
            assert_eq!(Sketch::width(d_sae), width);
            assert!(d_sae * width * size_of::<i32>() <= BYTES);
        }
        assert_eq!(Sketch::width(1 << 24), 128);
    }

    /// Latents 0 and 1 share half of their rows, 2 has its own, 3 those of 0.
    #[test]
    fn cosines_are_found_and_chance_is_not() {
        let rows = 20_000_u64;
        let mut parts = [Sketch::new(4), Sketch::new(4)];
        let active = |row: u64| {
            let of = |latent: u64| mix(row ^ (latent << 40)).is_multiple_of(10);
            let shared = mix(row ^ (9_u64 << 40)).is_multiple_of(20);
            let own = |latent: u64| shared || mix(row ^ (latent << 40)).is_multiple_of(20);
            [own(0), own(1), of(2), own(0)]
        };
        let mut fired = [0_u64; 4];
        let mut both = 0_u64;
        for row in 0..rows {
            let part = &mut parts[(row % 2) as usize];
            let place = part.place(row);
            let now = active(row);
            for (latent, sketch) in part.counts.chunks_mut(part.width).enumerate() {
                if now[latent] {
                    add(sketch, place);
                    fired[latent] += 1;
                }
            }
            both += u64::from(now[0] && now[1]);
        }
        let [mut sketch, other] = parts;
        sketch.merge(&other);
        let cosine = |i: usize, j: usize| {
            let [mut a, mut b] = [vec![0.0; sketch.width], vec![0.0; sketch.width]];
            sketch.direction(i, fired[i], &mut a);
            sketch.direction(j, fired[j], &mut b);
            a.iter().zip(&b).map(|(a, b)| a * b).sum::<f32>()
        };
        let exact = both as f32 / ((fired[0] * fired[1]) as f32).sqrt();
        assert!((cosine(0, 1) - exact).abs() < 0.06, "{} {exact}", cosine(0, 1));
        assert!((cosine(0, 3) - 1.0).abs() < 0.06);
        let chance = |i: usize, j: usize| sketch.chance(4, (fired[i], fired[j]), rows);
        assert!(cosine(0, 1) > chance(0, 1) && cosine(0, 2) < chance(0, 2));
    }
}
