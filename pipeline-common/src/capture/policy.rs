//! Policies: which tokens get a row, and what becomes of values that do not fit f16.
//!
//! They decide what is stored, never what the model computes: a row that is kept has the bits it
//! would have without them.

use std::{fmt, str::FromStr};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::{
    shard::{Dropped, stats::norm},
    text::{
        Encoding,
        rows::{Choice, RowArgs, TokenRows},
    },
};

/// Options that choose rows.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Rows")]
pub struct PolicyArgs {
    /// Which tokens get rows.
    #[command(flatten)]
    pub tokens: RowArgs,
    /// Drop tokens whose row in any hook has a larger norm, before ACTIVATION_SCALE: a number, or
    /// 10x for ten times the hook's median norm over the first batch of documents [default: off]
    #[arg(long, env, value_name = "NORM")]
    pub drop_norm_above: Option<NormLimit>,
    /// What becomes of finite values beyond f16; NaN and infinities are an error always
    #[arg(long, env, value_enum, default_value_t = Overflow::Error)]
    pub f16_overflow: Overflow,
}

/// What becomes of finite values that do not fit f16.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Overflow {
    /// The capture stops and names the row.
    Error,
    /// They become the largest f16, 65504, and are counted.
    Saturate,
}

/// The largest norm of a row that is kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum NormLimit {
    /// A norm.
    Absolute(f64),
    /// So many times the hook's median norm.
    Median(f64),
}

impl FromStr for NormLimit {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (number, limit): (_, fn(f64) -> Self) = match text.strip_suffix('x') {
            Some(factor) => (factor, Self::Median),
            None => (text, Self::Absolute),
        };
        match number.parse::<f64>() {
            Ok(n) if n.is_finite() && n > 0.0 => Ok(limit(n)),
            _ => Err("expected a norm above 0, or a multiple of the median such as 10x"),
        }
    }
}

impl fmt::Display for NormLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absolute(norm) => write!(f, "{norm}"),
            Self::Median(factor) => write!(f, "{factor} times the median"),
        }
    }
}

/// Whether a kind of token has rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Treatment {
    /// It has none.
    Dropped,
    /// It has.
    Kept,
}

impl Treatment {
    fn kept(keep: bool) -> Self {
        if keep { Self::Kept } else { Self::Dropped }
    }
}

/// The policies of a run, as `meta.json` states them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PolicyRecord {
    /// Special tokens other than BOS.
    pub special_tokens: Treatment,
    /// The special token that the tokenizer puts first.
    pub bos: Treatment,
    /// Positions without rows at the beginning of each sentence.
    pub first_positions_dropped: u32,
    /// Largest norm of a row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub norm: Option<NormRecord>,
    /// Tokens a document was cut to, special tokens included.
    pub max_length: u32,
    /// What became of values beyond f16.
    pub f16_overflow: Overflow,
    /// What activations were multiplied by before they were stored.
    pub activation_scale: f32,
}

/// The limit on norms.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NormRecord {
    /// The setting in words.
    pub largest: String,
    /// What it came to, in the order of the run's hooks; empty until the run begins.
    pub limits: Vec<HookLimit>,
}

/// The limit on the norms of one hook.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HookLimit {
    /// The hook's module path.
    pub hook: String,
    /// Median norm over the first batch of documents, where the limit is relative to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub median_norm: Option<f64>,
    /// The largest norm that is kept.
    pub limit: f64,
}

impl PolicyArgs {
    /// What `meta.json` says; limits that depend on the model's rows come later.
    pub fn record(&self, max_length: u32, activation_scale: f32) -> PolicyRecord {
        let norm = |limit: NormLimit| NormRecord { largest: limit.to_string(), limits: vec![] };
        PolicyRecord {
            special_tokens: Treatment::kept(self.tokens.keep_special),
            bos: Treatment::kept(self.tokens.choice().bos),
            first_positions_dropped: self.tokens.drop_first,
            norm: self.drop_norm_above.map(norm),
            max_length,
            f16_overflow: self.f16_overflow,
            activation_scale,
        }
    }
}

impl PolicyRecord {
    /// The policies that choose rows, with these limits on norms, one a hook.
    pub fn rows(&self) -> Rows {
        let limits = self.norm.iter().flat_map(|n| &n.limits).map(|l| l.limit).collect();
        let tokens = TokenRows {
            special: self.special_tokens == Treatment::Kept,
            bos: self.bos == Treatment::Kept,
            first: self.first_positions_dropped as usize,
        };
        Rows { tokens, limits }
    }

    /// Whether two runs follow the same policies, whatever limits they came to.
    pub fn same(&self, other: &Self) -> bool {
        let bare = |p: &Self| {
            let norm = p.norm.as_ref();
            Self { norm: norm.map(|n| NormRecord { limits: vec![], ..n.clone() }), ..p.clone() }
        };
        bare(self) == bare(other)
    }

    /// What gets no row, in one line; none if everything gets one.
    pub fn in_words(&self) -> Option<String> {
        let mut what = vec![];
        match (self.special_tokens, self.bos) {
            (Treatment::Dropped, Treatment::Dropped) => {
                what.push("BOS and other special tokens (KEEP_SPECIAL=1 keeps them)".to_owned());
            }
            (Treatment::Dropped, Treatment::Kept) => {
                what.push("special tokens other than BOS".to_owned());
            }
            (Treatment::Kept, _) => {}
        }
        if self.first_positions_dropped > 0 {
            what.push(format!("the first {} positions", self.first_positions_dropped));
        }
        if let Some(norm) = &self.norm {
            let limits: Vec<String> =
                norm.limits.iter().map(|l| format!("{:.4}", l.limit)).collect();
            let limits =
                if limits.is_empty() { String::new() } else { format!(" ({})", limits.join(", ")) };
            what.push(format!("rows of a norm above {}{limits}", norm.largest));
        }
        (!what.is_empty()).then(|| format!("no rows for: {}", what.join("; ")))
    }
}

/// Chooses rows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rows {
    tokens: TokenRows,
    /// Largest norm per hook; empty where there is no limit.
    limits: Vec<f64>,
}

impl Rows {
    /// Which tokens of a sentence have rows before their norms are known; counts the dropped ones.
    pub fn of_sentence(&self, sentence: &Encoding, dropped: &mut Dropped) -> Vec<bool> {
        let choices = self.tokens.of_sentence(sentence);
        dropped.first += choices.iter().filter(|c| **c == Choice::First).count() as u64;
        choices.into_iter().map(|choice| choice == Choice::Row).collect()
    }

    /// Takes the rows that are too large in any hook out of all hooks, and out of `keep`, which
    /// says whose rows `hooks` holds.
    pub fn drop_large(&self, keep: &mut [bool], hooks: &mut [Vec<f32>], dropped: &mut Dropped) {
        let rows = keep.iter().filter(|k| **k).count();
        let mut large = vec![false; rows];
        for (values, limit) in hooks.iter().zip(&self.limits).filter(|_| rows > 0) {
            let norms = values.chunks_exact(values.len() / rows).map(norm);
            // A row that is not finite is an error of the writer's, not a large one.
            large.iter_mut().zip(norms).for_each(|(l, n)| *l |= n.is_finite() && n > *limit);
        }
        let count = large.iter().filter(|l| **l).count();
        if count == 0 {
            return;
        }
        dropped.norm += count as u64;
        for values in hooks {
            retain(values, &large);
        }
        keep.iter_mut().filter(|k| **k).zip(large).for_each(|(k, large)| *k = !large);
    }
}

/// Keeps the rows that are not `large`, in place.
fn retain(values: &mut Vec<f32>, large: &[bool]) {
    let d_in = values.len() / large.len();
    let mut end = 0;
    for row in (0..large.len()).filter(|row| !large[*row]) {
        values.copy_within(row * d_in..(row + 1) * d_in, end);
        end += d_in;
    }
    values.truncate(end);
}

/// The median norm of rows, `[n, d_in]` row-major; the lower of two. None without rows.
pub fn median_norm(rows: &[f32], d_in: usize) -> Option<f64> {
    let mut norms: Vec<f64> = rows.chunks_exact(d_in).map(norm).collect();
    norms.sort_by(f64::total_cmp);
    norms.get(norms.len().saturating_sub(1) / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_too_large_in_one_hook_leaves_all() {
        let rows = Rows { limits: vec![2.0, 10.0], ..Rows::default() };
        let mut keep = [true, false, true, true];
        let mut hooks = [vec![1.0, 1.0, 3.0, 0.0, 0.0, 2.0], vec![1.0, 2.0, 3.0]];
        let mut dropped = Dropped::default();
        rows.drop_large(&mut keep, &mut hooks, &mut dropped);
        assert_eq!(keep, [true, false, false, true]);
        assert_eq!(hooks, [vec![1.0, 1.0, 0.0, 2.0], vec![1.0, 3.0]]);
        assert_eq!(dropped.norm, 1);
        hooks[1][0] = f32::NAN;
        hooks[1][1] = 11.0;
        rows.drop_large(&mut keep, &mut hooks, &mut dropped);
        assert_eq!(keep, [true, false, false, false]);
    }

    #[test]
    fn limits_are_norms_or_multiples() {
        assert_eq!("10x".parse(), Ok(NormLimit::Median(10.0)));
        assert_eq!("3.5".parse(), Ok(NormLimit::Absolute(3.5)));
        for bad in ["", "x", "0", "-1", "0x", "inf", "nanx", "10 x"] {
            assert!(bad.parse::<NormLimit>().is_err(), "{bad}");
        }
        assert_eq!(median_norm(&[3.0, 1.0, 2.0, 9.0], 1), Some(2.0));
        assert_eq!(median_norm(&[], 1), None);
    }
}
