//! Latents of another SAE whose decoder rows point the same way, and back.

use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    answer::{Answer, Refusal},
    browse::{Library, Opened, Weights},
    table,
};
use crate::kernels::product::{Matrix, Write, product};

/// Nearest latents at most.
const MOST: usize = 50;

/// What to compare.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Query {
    left: String,
    right: String,
    latent: String,
    #[serde(default = "ten")]
    k: usize,
}

fn ten() -> usize {
    10
}

/// The latents of `right` that are nearest to one of `left`.
pub(super) fn compare(library: &Library, query: &Query) -> Answer<Value> {
    if !(1..=MOST).contains(&query.k) {
        return Err(Refusal::bad(format!("k is {}, not 1 to {MOST}", query.k)));
    }
    let (left, right) = (library.open(&query.left)?, library.open(&query.right)?);
    let latent = left.latent(&query.latent)?;
    let (mine, theirs) = (library.weights(&left)?, library.weights(&right)?);
    let widths = [&mine, &theirs].map(|w| w.sae.params.d_out);
    if widths[0] != widths[1] {
        let what = format!(
            "decoder rows of `{}` have {} numbers, those of `{}` {}",
            query.left, widths[0], query.right, widths[1]
        );
        return Err(Refusal::bad(what).hint("compare SAEs of hooks of the same width"));
    }
    let same = left.meta.run_id == right.meta.run_id;
    let cosines = cosines(&mine, &[latent], &theirs);
    let nearest = largest(&cosines, query.k, |l| !same || l != latent);
    let others: Vec<usize> = nearest.iter().map(|(l, _)| *l).collect();
    let back = self::cosines(&theirs, &others, &mine);
    let d_left = mine.sae.params.d_sae;
    let shown = nearest.iter().zip(back.chunks_exact(d_left)).map(|((other, cosine), back)| {
        let (home, near) = largest(back, 1, |l| !same || l != *other)
            .first()
            .copied()
            .unwrap_or((latent, *cosine));
        Ok(json!({
            "latent": other, "cosine": cosine, "label": right.names().label(*other),
            "token": token(&right, *other)?,
            "density": right.top().ok().map(|top| top.density(*other)),
            "back": {"latent": home, "cosine": near, "label": left.names().label(home)},
            "mutual": home == latent,
        }))
    });
    let shown = shown.collect::<Answer<Vec<Value>>>()?;
    Ok(json!({
        "left": left.meta.run_id, "right": right.meta.run_id, "latent": latent,
        "label": left.names().label(latent), "token": token(&left, latent)?, "nearest": shown,
    }))
}

fn token(opened: &Opened, latent: usize) -> Answer<Option<String>> {
    opened.top().map_or(Ok(None), |top| table::token(top, latent))
}

/// Cosines of some latents' decoder rows with all of another SAE's, `[latents, d_sae]`; 0 with a row
/// of zeros.
fn cosines(from: &Weights, latents: &[usize], to: &Weights) -> Vec<f32> {
    let (p, q) = (&from.sae.params, &to.sae.params);
    let rows: Vec<f32> =
        latents.iter().flat_map(|l| p.w_dec[l * p.d_out..][..p.d_out].iter().copied()).collect();
    let mut out = vec![0.0; latents.len() * q.d_sae];
    let (a, b) =
        (Matrix::new(&rows, latents.len(), p.d_out), Matrix::new(&q.w_dec, q.d_sae, q.d_out).t());
    product(a, b, &mut out, Write::Replace);
    for (row, latent) in out.chunks_exact_mut(q.d_sae).zip(latents) {
        let norm = from.norms()[*latent];
        for (cosine, other) in row.iter_mut().zip(to.norms()) {
            let both = norm * other;
            *cosine = if both > 0.0 { *cosine / both } else { 0.0 };
        }
    }
    out
}

/// The places of the `k` largest of those that are wanted, the largest first.
fn largest(values: &[f32], k: usize, wanted: impl Fn(usize) -> bool) -> Vec<(usize, f32)> {
    let mut all: Vec<(usize, f32)> =
        values.iter().copied().enumerate().filter(|(place, _)| wanted(*place)).collect();
    let before = |a: &(usize, f32), b: &(usize, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    if k < all.len() {
        all.select_nth_unstable_by(k, before);
        all.truncate(k);
    }
    all.sort_unstable_by(before);
    all
}
