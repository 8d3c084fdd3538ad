//! Changes activations of latents while the model runs.
//!
//! `x' = x + Σ (f' - f) d` over the latents that are changed, where `x` is the model's own row, `f` the
//! latent's activation and `d` its decoder row: what the SAE does not explain of `x` stays. Rows in
//! which no activation changes are left as they are, to the last bit.

use std::sync::Arc;

use candle_core::Tensor;
use serde::Deserialize;

use super::{
    answer::{Answer, Refusal},
    browse::{Library, Opened, Weights},
    engine::{CHUNK, Model},
};
use crate::{kernels::host, model::Hook};

/// Changes at most.
const MOST: usize = 32;

/// How an activation changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Op {
    Add,
    Clamp,
    Scale,
    Ablate,
}

/// A change that is asked for.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Intervention {
    pub sae: String,
    latent: u64,
    op: Op,
    #[serde(default)]
    value: f64,
}

/// `f' = factor · f + shift` of a latent.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Change {
    latent: u32,
    factor: f32,
    shift: f32,
}

impl Change {
    fn then(&mut self, op: Op, value: f32) {
        let (factor, shift) = match op {
            Op::Add => (self.factor, self.shift + value),
            Op::Clamp => (0.0, value),
            Op::Scale => (self.factor * value, self.shift * value),
            Op::Ablate => (0.0, 0.0),
        };
        (self.factor, self.shift) = (factor, shift);
    }

    fn delta(&self, f: f32) -> f32 {
        match self.factor {
            // Not `f - f`, which a number that is not finite would survive.
            1.0 => self.shift,
            factor => (factor - 1.0) * f + self.shift,
        }
    }
}

/// An SAE whose latents are changed.
struct Steered {
    weights: Arc<Weights>,
    /// Where it reads and where it writes, as places in the hooks.
    read: usize,
    write: usize,
    /// By latent.
    changes: Vec<Change>,
    /// Changes of the running pass: row, latent, how much of its decoder row.
    pushes: Vec<(usize, u32, f32)>,
}

/// All changes of a generation.
pub(super) struct Steering {
    hooks: Vec<Hook>,
    saes: Vec<Steered>,
}

impl Steering {
    /// Of the interventions, on SAEs that are `opened` and of this model.
    pub fn new(
        library: &Library,
        model: &Model,
        opened: &[Opened],
        interventions: &[Intervention],
    ) -> Answer<Self> {
        let mut steering = Self { hooks: vec![], saes: vec![] };
        for opened in opened {
            let mine = interventions.iter().filter(|i| i.sae == opened.meta.run_id);
            let changes = changes(opened, mine)?;
            let read = model.hook(&opened.meta.hook)?;
            let write = opened.meta.target_hook.as_deref().map_or(Ok(read), |h| model.hook(h))?;
            let order = Hook::all(model.info());
            let place = |hook| order.iter().position(|h| *h == hook);
            if place(read) > place(write) {
                let what = format!(
                    "`{}` writes to a hook that is computed before the one it reads",
                    opened.meta.run_id
                );
                return Err(Refusal::bad(what));
            }
            let weights = library.weights(opened)?;
            let (read, write) = (steering.place(read), steering.place(write));
            steering.saes.push(Steered { weights, read, write, changes, pushes: vec![] });
        }
        Ok(steering)
    }

    fn place(&mut self, hook: Hook) -> usize {
        self.hooks.iter().position(|h| *h == hook).unwrap_or_else(|| {
            self.hooks.push(hook);
            self.hooks.len() - 1
        })
    }

    /// The hooks to visit.
    pub fn hooks(&self) -> &[Hook] {
        &self.hooks
    }

    /// What takes the place of a hook's tensor, in which these rows are steered.
    pub fn visit(
        &mut self,
        hook: usize,
        tensor: &Tensor,
        rows: &[usize],
    ) -> candle_core::Result<Option<Tensor>> {
        // All read before any writes: each sees the row as the model made it.
        for sae in self.saes.iter_mut().filter(|sae| sae.read == hook) {
            sae.read(tensor, rows)?;
        }
        let mut changed: Option<(Vec<f32>, usize)> = None;
        for sae in self.saes.iter_mut().filter(|sae| sae.write == hook) {
            let pushes = std::mem::take(&mut sae.pushes);
            if pushes.is_empty() {
                continue;
            }
            let (values, width) = match &mut changed {
                Some(changed) => changed,
                None => {
                    let all = host::gather(tensor, 0..tensor.dim(0)?)?;
                    changed.insert((all, tensor.dim(1)?))
                }
            };
            sae.write(&pushes, values, *width)?;
        }
        let tensor = changed.map(|(values, width)| {
            Tensor::from_vec(values, (tensor.dim(0)?, width), tensor.device())
        });
        tensor.transpose()
    }
}

/// The changes of one SAE's latents, those of one latent in the order given.
fn changes<'a>(
    opened: &Opened,
    interventions: impl Iterator<Item = &'a Intervention>,
) -> Answer<Vec<Change>> {
    let mut changes: Vec<Change> = vec![];
    for intervention in interventions {
        let latent = opened.latent(&intervention.latent.to_string());
        let latent = latent.map_err(|refusal| Refusal::bad(refusal.error))? as u32;
        let value = intervention.value as f32;
        if !value.is_finite() {
            return Err(Refusal::bad(format!("value {} is out of range", intervention.value)));
        }
        let place = changes.iter().position(|c| c.latent == latent).unwrap_or_else(|| {
            changes.push(Change { latent, factor: 1.0, shift: 0.0 });
            changes.len() - 1
        });
        changes[place].then(intervention.op, value);
    }
    Ok(changes)
}

/// Refuses more changes than a request may have.
pub(super) fn check(interventions: &[Intervention]) -> Answer<()> {
    if interventions.len() > MOST {
        return Err(Refusal::bad(format!("more than {MOST} interventions")));
    }
    Ok(())
}

impl Steered {
    /// Notes what changes at these rows of the tensor that it reads.
    fn read(&mut self, tensor: &Tensor, rows: &[usize]) -> candle_core::Result<()> {
        let (sae, d_in) = (&self.weights.sae, self.weights.sae.params.d_in);
        if tensor.dim(1)? != d_in {
            let msg =
                format!("the hook has {} numbers a row, the SAE reads {d_in}", tensor.dim(1)?);
            return Err(candle_core::Error::Msg(msg));
        }
        // Pushes that depend on no activation need none.
        let reads = self.changes.iter().any(|change| change.factor != 1.0);
        for rows in rows.chunks(CHUNK) {
            let x = host::gather(tensor, rows.iter().copied())?;
            let latents = reads.then(|| sae.encode(&x));
            for (n, (row, x)) in rows.iter().zip(x.chunks_exact(d_in)).enumerate() {
                let spread = sae.row_norm.map_or(1.0, |norm| norm.spread(x));
                for change in &self.changes {
                    let f = latents.as_ref().map_or(0.0, |latents| {
                        let (index, value) = latents.row(n);
                        index.binary_search(&change.latent).map_or(0.0, |place| value[place])
                    });
                    let push = change.delta(f) * spread;
                    if push != 0.0 {
                        self.pushes.push((*row, change.latent, push));
                    }
                }
            }
        }
        Ok(())
    }

    /// Adds the decoder rows.
    fn write(
        &self,
        pushes: &[(usize, u32, f32)],
        values: &mut [f32],
        width: usize,
    ) -> candle_core::Result<()> {
        let p = &self.weights.sae.params;
        if width != p.d_out {
            let msg = format!("the hook has {width} numbers a row, the SAE writes {}", p.d_out);
            return Err(candle_core::Error::Msg(msg));
        }
        for (row, latent, push) in pushes {
            let direction = &p.w_dec[*latent as usize * width..][..width];
            let x = &mut values[row * width..][..width];
            x.iter_mut().zip(direction).for_each(|(x, d)| *x += push * d);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_of_a_latent_follow_each_other() {
        let delta = |f: f32, ops: &[(Op, f32)]| {
            let mut change = Change { latent: 0, factor: 1.0, shift: 0.0 };
            ops.iter().for_each(|(op, value)| change.then(*op, *value));
            change.delta(f)
        };
        assert_eq!(delta(3.0, &[(Op::Add, 2.0)]), 2.0);
        assert_eq!(delta(3.0, &[(Op::Clamp, 2.0)]), -1.0);
        assert_eq!(delta(3.0, &[(Op::Scale, 2.0)]), 3.0);
        assert_eq!(delta(3.0, &[(Op::Ablate, 9.0)]), -3.0);
        assert_eq!(delta(3.0, &[(Op::Scale, 2.0), (Op::Add, 1.0)]), 4.0);
        assert_eq!(delta(3.0, &[(Op::Add, 1.0), (Op::Scale, 2.0)]), 5.0);
        for nothing in [(Op::Add, 0.0), (Op::Clamp, 3.0), (Op::Scale, 1.0)] {
            assert_eq!(delta(3.0, &[nothing]), 0.0, "{nothing:?}");
        }
        assert_eq!(delta(f32::INFINITY, &[(Op::Scale, 1.0)]), 0.0);
        assert_eq!(delta(0.0, &[(Op::Ablate, 0.0)]), 0.0);
    }
}
