//! The running mean of the smallest activations that a batch kept: the threshold above which a
//! latent counts when rows are encoded alone.

use crate::kernels::sparse::SparseRows;

/// How the mean runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Running {
    /// Weight of what was before.
    pub decay: f64,
    /// Steps before the first batch that counts.
    pub start: u64,
    /// The mean before that batch; where there is none, the batch's own value.
    pub first: Option<f64>,
}

impl Running {
    /// Decay 0.999 from `start` on, begun with the first value (`dictionary_learning`).
    pub fn from_step(start: u64) -> Self {
        Self { decay: 0.999, start, first: None }
    }
}

/// The mean so far.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Threshold {
    running: Running,
    value: Option<f64>,
}

impl Threshold {
    /// Before the first step.
    pub fn new(running: Running) -> Self {
        Self { running, value: running.first }
    }

    /// Goes on from a value.
    pub fn set(&mut self, value: Option<f64>) {
        self.value = value;
    }

    /// The mean; `None` before the first batch that counts.
    pub fn value(&self) -> Option<f64> {
        self.value
    }

    /// Counts a batch's smallest activation. A batch without any is left out: as infinity it would
    /// stay in the mean for ever.
    pub fn update(&mut self, step: u64, smallest: Option<f64>) {
        let Some(smallest) = smallest.filter(|_| step >= self.running.start) else { return };
        let decay = self.running.decay;
        self.value = Some(self.value.map_or(smallest, |v| decay * v + (1.0 - decay) * smallest));
    }
}

/// By activation times decoder norm, where latents are chosen by that.
fn smallest_of((index, value): (&[u32], &[f32]), norms: Option<&[f32]>) -> Option<f64> {
    let chosen_by = |(l, v): (&u32, &f32)| norms.map_or(*v, |norms| v * norms[*l as usize]);
    let numbers = index.iter().zip(value).map(chosen_by);
    numbers.filter(|v| *v > 0.0).reduce(f32::min).map(f64::from)
}

/// The mean of each row's smallest activation, over the rows that have one; times the latent's
/// decoder norm where `norms` are given, as the threshold of an SAE with the norms folded in.
pub fn mean_of_rows(active: &SparseRows, norms: Option<&[f32]>) -> Option<f64> {
    let rows: Vec<f64> =
        (0..active.rows()).filter_map(|row| smallest_of(active.row(row), norms)).collect();
    (!rows.is_empty()).then(|| rows.iter().sum::<f64>() / rows.len() as f64)
}

/// The smallest activation of all rows; `norms` as in [`mean_of_rows`].
pub fn of_batch(active: &SparseRows, norms: Option<&[f32]>) -> Option<f64> {
    (0..active.rows()).filter_map(|row| smallest_of(active.row(row), norms)).reduce(f64::min)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::sparse::tests::from_dense;

    /// With a row whose activations are all zero the smallest of that row is infinite, and so
    /// would be the mean from then on.
    #[test]
    fn trap_an_all_zero_row_leaves_the_threshold_finite() {
        let mut threshold = Threshold::new(Running::from_step(0));
        threshold.update(0, mean_of_rows(&from_dense(&[0.0, 0.0, 2.0, 3.0], 2), None));
        assert_eq!(threshold.value(), Some(2.0));
        threshold.update(1, mean_of_rows(&from_dense(&[0.0, 0.0], 2), None));
        threshold.update(2, of_batch(&from_dense(&[0.0, 0.0], 2), None));
        assert_eq!(threshold.value(), Some(2.0));
    }

    #[test]
    fn the_first_value_is_copied_and_later_ones_move_it_slowly() {
        let mut threshold = Threshold::new(Running::from_step(5));
        threshold.update(4, Some(9.0));
        assert_eq!(threshold.value(), None);
        threshold.update(5, Some(1.0));
        threshold.update(6, Some(2.0));
        assert!((threshold.value().unwrap() - 1.001).abs() < 1e-12);
        let saelens = Running { decay: 0.99, start: 0, first: Some(0.0) };
        let mut threshold = Threshold::new(saelens);
        threshold.update(0, Some(1.0));
        assert!((threshold.value().unwrap() - 0.01).abs() < 1e-12);
    }
}
