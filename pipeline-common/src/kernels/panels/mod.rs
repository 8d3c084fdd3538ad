//! Products with a weight that is laid out once: the linear layers of the model.
//!
//! `y = x Wᵀ` with x [rows, k], W [n, k], y [rows, n]. The weight is kept in panels of
//! [`COLUMNS`] outputs, [k, COLUMNS] each, which the microkernels of [`tile`] read in order. Each
//! element of y is one chain over k, so it depends neither on the number of threads nor on what
//! else is in the batch: a row computed alone equals the same row in a batch, bit for bit.
//!
//! With a bf16 weight x is rounded to bf16 as well and sums are f32. The product of two bf16 is exact in f32,
//! so a processor without a fast instruction for pairs widens a panel and takes the f32 kernel.

pub mod tile;

use std::ops::Range;

use candle_core::{DType, Result, Tensor};
use half::{bf16, slice::HalfFloatSliceExt};
use rayon::prelude::*;

use self::tile::{COLUMNS, Kernel, ROWS, Tile};
use super::{
    activation::Activation,
    host::{Output, View, by_chunks, tensor, view, with_scratch},
    product::Write,
    vector::simd,
};

/// Rows of x that stay in the second-level cache while panels pass by.
const BLOCK_BYTES: usize = 1 << 20;
/// Rows of a panel that are laid out together, of numbers or of pairs: 12 KiB.
const STRIP: usize = 64;
/// Tasks for each thread, so that none waits long for the last.
const TASKS: usize = 4;

/// A weight [n, k] in panels.
#[derive(Debug)]
pub struct Panels {
    k: usize,
    n: usize,
    data: Data,
}

#[derive(Debug)]
enum Data {
    /// [panels, k, COLUMNS].
    F32(Vec<f32>),
    /// [panels, k / 2 rounded up, COLUMNS] pairs: elements 2i and 2i + 1 of a column.
    Bf16(Vec<[bf16; 2]>),
}

impl Data {
    /// Makes room for zeros.
    fn clear(&mut self, panels: usize, k: usize) {
        match self {
            Self::F32(data) => {
                data.clear();
                data.resize(panels * k * COLUMNS, 0.0);
            }
            Self::Bf16(data) => {
                data.clear();
                data.resize(panels * k.div_ceil(2) * COLUMNS, [bf16::ZERO; 2]);
            }
        }
    }
}

impl Panels {
    /// Lays out the rows of a weight that `row` gives, n rows of k numbers, as f32 or bf16.
    ///
    /// # Panics
    /// If a row has not k numbers.
    pub fn new<'a>(
        n: usize,
        k: usize,
        dtype: DType,
        row: impl Fn(usize) -> &'a [f32] + Sync,
    ) -> Self {
        let mut panels = Self::empty(dtype);
        panels.fill(n, k, row);
        panels
    }

    /// Length of the weight's rows, k.
    pub fn inputs(&self) -> usize {
        self.k
    }

    /// Number of the weight's rows, n.
    pub fn outputs(&self) -> usize {
        self.n
    }

    /// In what the weight is kept, F32 or BF16.
    pub fn dtype(&self) -> DType {
        match self.data {
            Data::F32(_) => DType::F32,
            Data::Bf16(_) => DType::BF16,
        }
    }

    /// A weight without rows, to be filled.
    pub fn empty(dtype: DType) -> Self {
        let bf16 = dtype == DType::BF16;
        Self { k: 0, n: 0, data: if bf16 { Data::Bf16(vec![]) } else { Data::F32(vec![]) } }
    }

    /// Lays out other rows, as [`Self::new`], in the same memory if there are as many.
    ///
    /// # Panics
    /// If a row has not k numbers.
    pub fn fill<'a>(&mut self, n: usize, k: usize, row: impl Fn(usize) -> &'a [f32] + Sync) {
        let columns = |p: usize| {
            let rows = (p * COLUMNS..n.min((p + 1) * COLUMNS)).map(&row);
            rows.inspect(|weight| assert_eq!(weight.len(), k, "row of a weight")).enumerate()
        };
        self.resize(n, k);
        match &mut self.data {
            Data::F32(data) => {
                data.par_chunks_mut((k * COLUMNS).max(1)).enumerate().for_each(|(p, panel)| {
                    // Few rows of the panel at a time, so that they stay in cache.
                    for (part, panel) in panel.chunks_mut(STRIP * COLUMNS).enumerate() {
                        for (c, weight) in columns(p) {
                            let weight = &weight[part * STRIP..];
                            let places = panel[c..].iter_mut().step_by(COLUMNS);
                            places.zip(weight).for_each(|(place, w)| *place = *w);
                        }
                    }
                });
            }
            Data::Bf16(data) => {
                let size = k.div_ceil(2) * COLUMNS;
                data.par_chunks_mut(size.max(1)).enumerate().for_each(|(p, panel)| {
                    let mut pairs = [[bf16::ZERO; 2]; STRIP];
                    for (part, panel) in panel.chunks_mut(STRIP * COLUMNS).enumerate() {
                        for (c, weight) in columns(p) {
                            let weight = &weight[2 * STRIP * part..];
                            pair_up(weight, &mut pairs);
                            let places = panel[c..].iter_mut().step_by(COLUMNS);
                            places.zip(&pairs).for_each(|(place, pair)| *place = *pair);
                        }
                    }
                });
            }
        }
    }

    /// Makes room; zeros beyond the last column stay from the first time.
    fn resize(&mut self, n: usize, k: usize) {
        if (n, k) != (self.n, self.k) {
            self.data.clear(n.div_ceil(COLUMNS), k);
            (self.n, self.k) = (n, k);
        }
    }

    /// Lays out a weight tensor [n, k]; `None` unless it is f32 in main memory.
    ///
    /// # Errors
    /// A tensor of other than two dimensions.
    pub fn of(weight: &Tensor, dtype: DType) -> Result<Option<Self>> {
        let (n, k) = weight.dims2()?;
        Ok(view(weight).map(|w| Self::new(n, k, dtype, |i| &w[i * k..(i + 1) * k])))
    }

    /// Lays out two weights [n, k] of which [`gated`] takes one output each: `COLUMNS / 2` rows of
    /// the first beside as many of the second. `None` unless both are f32 in main memory.
    ///
    /// # Errors
    /// Tensors of other than two dimensions, or of different shapes.
    pub fn of_pair(first: &Tensor, second: &Tensor, dtype: DType) -> Result<Option<Self>> {
        let (n, k) = first.dims2()?;
        if second.dims() != first.dims() {
            candle_core::bail!("pair of weights {:?} and {:?}", first.dims(), second.dims());
        }
        let (Some(first), Some(second)) = (view(first), view(second)) else { return Ok(None) };
        let zero = vec![0.0; k];
        let row = |i: usize| {
            let (panel, c) = (i / COLUMNS, i % COLUMNS);
            let (of, c) = if c < HALF { (&first, c) } else { (&second, c - HALF) };
            let at = panel * HALF + c;
            if at < n { &of[at * k..(at + 1) * k] } else { &zero[..] }
        };
        Ok(Some(Self::new(n.div_ceil(HALF) * COLUMNS, k, dtype, row)))
    }

    /// The product of x [rows, k], of which `finish` makes [rows, n] with `width` columns a panel.
    ///
    /// It is given each row's sums over a panel, the row, and the output's columns, and leaves what
    /// belongs there at the front of the sums.
    fn multiply(
        &self,
        x: &[f32],
        (n, width): (usize, usize),
        finish: impl Fn(&mut [f32; COLUMNS], usize, &Range<usize>) + Sync,
    ) -> Result<Tensor> {
        let rows = x.len() / self.k.max(1);
        #[expect(unsafe_code, reason = "clearing what is written anyway takes time")]
        // SAFETY: every row of every panel is written, and the panels cover every column.
        let out = unsafe {
            Output::written(rows * n, |out| {
                let input = Input::new(x, self);
                self.multiply_into(&input, (rows, n, width), (out, Write::Replace), finish);
            })
        };
        tensor(out, (rows, n))
    }

    /// The product of x [rows, k] as [rows, n], in place of `out` or added to it.
    ///
    /// # Panics
    /// If the lengths do not fit.
    pub fn product(&self, x: &[f32], out: &mut [f32], write: Write) {
        self.product_of(&Input::new(x, self), x.len(), out, write);
    }

    fn product_of(&self, input: &Input<'_>, numbers: usize, out: &mut [f32], write: Write) {
        let rows = numbers / self.k.max(1);
        assert_eq!((numbers, out.len()), (rows * self.k, rows * self.n), "rows of a product");
        let out = (&Output::over(out), write);
        self.multiply_into(input, (rows, self.n, COLUMNS), out, |_, _, _| ());
    }

    /// As [`Self::multiply`], into an output that it writes whole.
    fn multiply_into(
        &self,
        input: &Input<'_>,
        (rows, n, width): (usize, usize, usize),
        (out, write): (&Output<'_>, Write),
        finish: impl Fn(&mut [f32; COLUMNS], usize, &Range<usize>) + Sync,
    ) {
        let block = |widened: &mut [f32], rows: Range<usize>, panel| {
            let source = input.panel(panel, widened);
            let columns = panel * width..n.min((panel + 1) * width);
            let mut tile = [[0.0; COLUMNS]; ROWS];
            for begin in rows.clone().step_by(ROWS) {
                let rows = begin..rows.end.min(begin + ROWS);
                source.run(&rows, &mut tile);
                for (row, sums) in rows.zip(&mut tile) {
                    finish(sums, row, &columns);
                    let (at, sums) = (row * n + columns.start, &sums[..columns.len()]);
                    match write {
                        Write::Replace => out.write(at, sums),
                        Write::Add => out.add(at, sums),
                    }
                }
            }
        };
        // Every row of every panel, once (tested).
        let tasks = tasks(rows, self.k, n.div_ceil(width)).into_par_iter();
        tasks.for_each(|(rows, panels)| {
            with_scratch(input.widened(), |widened| {
                panels.for_each(|panel| block(widened, rows.clone(), panel));
            });
        });
    }
}

/// Outputs of each weight in a panel of a pair.
const HALF: usize = COLUMNS / 2;

/// Blocks of rows times groups of panels.
fn tasks(rows: usize, k: usize, panels: usize) -> Vec<(Range<usize>, Range<usize>)> {
    let threads = rayon::current_num_threads();
    let most = (BLOCK_BYTES / size_of::<f32>() / k.max(1)).clamp(8 * ROWS, 56 * ROWS);
    let block = rows.div_ceil(threads).clamp(1, most).next_multiple_of(ROWS);
    let blocks = rows.div_ceil(block);
    let group = panels.div_ceil((TASKS * threads).div_ceil(blocks.max(1)));
    let mut tasks = vec![];
    for begin in (0..rows).step_by(block) {
        for first in (0..panels).step_by(group.max(1)) {
            tasks.push((begin..rows.min(begin + block), first..panels.min(first + group)));
        }
    }
    tasks
}

/// x and the weight in the form that the kernel reads.
enum Input<'a> {
    F32 { x: std::borrow::Cow<'a, [f32]>, panels: &'a Panels },
    Dot { x: Vec<[bf16; 2]>, panels: &'a [[bf16; 2]], pairs: usize },
}

/// One panel of the weight, and the rows.
enum Source<'a> {
    F32 { x: &'a [f32], stride: usize, panel: &'a [f32] },
    Dot { x: &'a [[bf16; 2]], stride: usize, panel: &'a [[bf16; 2]] },
}

impl<'a> Input<'a> {
    fn new(x: &'a [f32], panels: &'a Panels) -> Self {
        match &panels.data {
            Data::F32(_) => Self::F32 { x: x.into(), panels },
            Data::Bf16(data) if tile::has_fast_dot() => {
                Self::Dot { x: pairs(x, panels.k), panels: data, pairs: panels.k.div_ceil(2) }
            }
            Data::Bf16(_) => Self::F32 { x: rounded(x).into(), panels },
        }
    }

    /// Numbers of a panel that is widened.
    fn widened(&self) -> usize {
        match self {
            Self::F32 { panels: Panels { k, data: Data::Bf16(_), .. }, .. } => {
                k.next_multiple_of(2) * COLUMNS
            }
            _ => 0,
        }
    }

    /// `widened` is scratch for a bf16 panel in f32.
    fn panel(&'a self, panel: usize, widened: &'a mut [f32]) -> Source<'a> {
        match self {
            Self::F32 { x, panels } => {
                let stride = panels.k;
                let panel = match &panels.data {
                    Data::F32(data) => &data[panel * stride * COLUMNS..][..stride * COLUMNS],
                    Data::Bf16(data) => {
                        let size = stride.div_ceil(2) * COLUMNS;
                        widen(&data[panel * size..][..size], widened);
                        &widened[..stride * COLUMNS]
                    }
                };
                Source::F32 { x, stride, panel }
            }
            Self::Dot { x, panels, pairs } => {
                let size = pairs * COLUMNS;
                Source::Dot { x, stride: *pairs, panel: &panels[panel * size..][..size] }
            }
        }
    }
}

impl Source<'_> {
    fn run(&self, rows: &Range<usize>, tile: &mut Tile) {
        match self {
            Self::F32 { x, stride, panel } => {
                Kernel::best().run(&x[rows.start * stride..], *stride, rows.len(), panel, tile);
            }
            Self::Dot { x, stride, panel } => {
                tile::dot(&x[rows.start * stride..], *stride, rows.len(), panel, tile);
            }
        }
    }
}

/// Numbers rounded by one task.
const CHUNK: usize = 64 * 1024;

/// x rounded to bf16, as f32.
fn rounded(x: &[f32]) -> Vec<f32> {
    by_chunks(x.len(), CHUNK, |i, y| {
        let x = &x[i * CHUNK..];
        simd(
            #[inline(always)]
            || y.iter_mut().zip(x).for_each(|(y, x)| *y = round(*x)),
        );
    })
}

/// To the nearest bf16, ties to even; not-a-number and the infinities stay what they are.
#[inline(always)]
pub fn round(x: f32) -> f32 {
    let bits = x.to_bits();
    let up = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
    f32::from_bits(if x.is_finite() { up } else { bits } & 0xffff_0000)
}

/// x [rows, k] as bf16 in pairs, [rows, k / 2 rounded up].
fn pairs(x: &[f32], k: usize) -> Vec<[bf16; 2]> {
    let width = k.div_ceil(2);
    let mut out = vec![[bf16::ZERO; 2]; x.len() / k.max(1) * width];
    out.par_chunks_mut(width.max(1)).zip(x.par_chunks(k.max(1))).for_each(|(y, x)| {
        y.as_flattened_mut()[..k].convert_from_f32_slice(x);
    });
    out
}

/// Pairs of neighbours, as many as fit; the last of an odd number has a zero.
#[inline(always)]
fn pair_up(numbers: &[f32], pairs: &mut [[bf16; 2]; STRIP]) {
    let count = numbers.len().min(2 * STRIP);
    pairs[count / 2..].fill([bf16::ZERO; 2]);
    pairs.as_flattened_mut()[..count].convert_from_f32_slice(&numbers[..count]);
}

/// Pairs [k / 2, COLUMNS] as f32 [k, COLUMNS].
fn widen(pairs: &[[bf16; 2]], out: &mut [f32]) {
    simd(
        #[inline(always)]
        || {
            let (rows, _) = pairs.as_chunks::<COLUMNS>();
            let (out, _) = out.as_chunks_mut::<{ 2 * COLUMNS }>();
            for (row, out) in rows.iter().zip(out) {
                for (c, pair) in row.iter().enumerate() {
                    out[c] = f32::from_bits(u32::from(pair[0].to_bits()) << 16);
                    out[COLUMNS + c] = f32::from_bits(u32::from(pair[1].to_bits()) << 16);
                }
            }
        },
    );
}

/// What is added to a product.
#[derive(Clone, Copy, Default)]
pub struct Plus<'a> {
    /// `[n]`, to every row.
    pub bias: Option<&'a Tensor>,
    /// [rows, n], after the bias.
    pub residual: Option<&'a Tensor>,
}

/// `residual + (x Wᵀ + bias)`: x [rows, k], the weight [n, k]; returns [rows, n].
///
/// # Errors
/// Operands that are not f32 in main memory, or do not fit.
pub fn linear(x: &Tensor, weight: &Panels, plus: Plus<'_>) -> Result<Tensor> {
    let n = weight.n;
    let xs = operand(x, weight)?;
    let rows = xs.len() / weight.k.max(1);
    let bias = added(plus.bias, n, weight)?;
    let residual = added(plus.residual, rows * n, weight)?;
    weight.multiply(&xs, (n, COLUMNS), |sums, row, columns| {
        let sums = &mut sums[..columns.len()];
        if let Some(bias) = &bias {
            sums.iter_mut().zip(&bias[columns.clone()]).for_each(|(s, b)| *s += b);
        }
        if let Some(residual) = &residual {
            let residual = &residual[row * n + columns.start..];
            sums.iter_mut().zip(residual).for_each(|(s, r)| *s += r);
        }
    })
}

/// The inner activation of a gated feed-forward block, `act(x Gᵀ) · x Uᵀ`: x [rows, k], the pair
/// of weights from [`Panels::of_pair`] with n outputs each; returns [rows, n].
///
/// # Errors
/// Operands that are not f32 in main memory, or do not fit.
pub fn gated(x: &Tensor, pair: &Panels, act: Activation, n: usize) -> Result<Tensor> {
    halves(x, pair, n, |gate, up| {
        act.apply_to(gate);
        gate.iter_mut().zip(up).for_each(|(g, u)| *g *= *u);
    })
}

/// The first of a pair alone, `act(x Gᵀ)`; as [`gated`].
///
/// # Errors
/// As [`gated`].
pub fn gate(x: &Tensor, pair: &Panels, act: Activation, n: usize) -> Result<Tensor> {
    halves(x, pair, n, |gate, _| act.apply_to(gate))
}

/// The second of a pair alone, `x Uᵀ`; as [`gated`].
///
/// # Errors
/// As [`gated`].
pub fn up(x: &Tensor, pair: &Panels, n: usize) -> Result<Tensor> {
    halves(x, pair, n, |gate, up| gate.copy_from_slice(up))
}

/// [rows, n] from both halves of each panel; `join` leaves its result in the first.
fn halves(
    x: &Tensor,
    pair: &Panels,
    n: usize,
    join: impl Fn(&mut [f32], &[f32]) + Sync,
) -> Result<Tensor> {
    let xs = operand(x, pair)?;
    if n.div_ceil(HALF) * COLUMNS != pair.n {
        return Err(misfit("pair", pair));
    }
    pair.multiply(&xs, (n, HALF), |sums, _, _| {
        let (gate, up) = sums.split_at_mut(HALF);
        join(gate, up);
    })
}

/// The numbers of a term, which must be `len`.
fn added<'a>(term: Option<&'a Tensor>, len: usize, to: &Panels) -> Result<Option<View<'a>>> {
    let numbers = |t| view(t).filter(|numbers| numbers.len() == len);
    let misfit = || misfit("what is added to the output", to);
    term.map(|t| numbers(t).ok_or_else(misfit)).transpose()
}

fn operand<'a>(x: &'a Tensor, weight: &Panels) -> Result<View<'a>> {
    let fits = matches!(x.dims(), [_, k] if *k == weight.k);
    view(x).filter(|_| fits).ok_or_else(|| misfit("input", weight))
}

fn misfit(what: &str, weight: &Panels) -> candle_core::Error {
    candle_core::Error::Msg(format!("{what} of a linear layer [{}, {}]", weight.n, weight.k)).bt()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::testing::numbers, *};

    fn flat(t: &Tensor) -> Vec<f32> {
        t.flatten_all().unwrap().to_vec1().unwrap()
    }

    /// One chain per element, as the kernels promise.
    fn chain(x: &Tensor, w: &Tensor, cast: fn(f32) -> f32) -> Vec<f32> {
        let (k, xs, ws) = (x.dim(1).unwrap(), flat(x), flat(w));
        let dot = |x: &[f32], w: &[f32]| {
            x.iter().zip(w).fold(0.0_f32, |sum, (x, w)| cast(*x).mul_add(cast(*w), sum))
        };
        xs.chunks_exact(k).flat_map(|x| ws.chunks_exact(k).map(move |w| dot(x, w))).collect()
    }

    #[test]
    fn panels_that_are_filled_again_forget_what_they_held() {
        for dtype in [DType::F32, DType::BF16] {
            let mut panels = Panels::empty(dtype);
            for (seed, rows, k, n) in [(1, 9, 70, 50), (2, 3, 70, 50), (3, 5, 33, 97)] {
                let (x, w) = (flat(&numbers(seed, (rows, k))), flat(&numbers(seed + 9, (n, k))));
                panels.fill(n, k, |i| &w[i * k..][..k]);
                let (mut found, mut expected) = (vec![f32::NAN; rows * n], vec![0.0; rows * n]);
                panels.product(&x, &mut found, Write::Replace);
                let fresh = Panels::new(n, k, dtype, |i| &w[i * k..][..k]);
                fresh.product(&x, &mut expected, Write::Replace);
                assert_eq!(found, expected);
                assert_eq!((panels.inputs(), panels.outputs(), panels.dtype()), (k, n, dtype));
            }
        }
    }

    fn bf16_of(x: f32) -> f32 {
        bf16::from_f32(x).to_f32()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn a_product_is_the_plain_chain_bit_for_bit(rows in 1_usize..70, k in 1_usize..80, n in 1_usize..150) {
            let (x, w, b) = (numbers(1, (rows, k)), numbers(2, (n, k)), numbers(3, n));
            let panels = Panels::of(&w, DType::F32).unwrap().unwrap();
            let expected = chain(&x, &w, |x| x);
            prop_assert_eq!(flat(&linear(&x, &panels, Plus::default()).unwrap()), expected.clone());
            let biased: Vec<f32> = expected.iter().zip(flat(&b).iter().cycle()).map(|(y, b)| y + b).collect();
            let plus = Plus { bias: Some(&b), residual: None };
            prop_assert_eq!(flat(&linear(&x, &panels, plus).unwrap()), biased.clone());
            let residual = numbers(4, (rows, n));
            let plus = Plus { residual: Some(&residual), ..plus };
            let all: Vec<f32> = flat(&residual).iter().zip(&biased).map(|(r, y)| r + y).collect();
            prop_assert_eq!(flat(&linear(&x, &panels, plus).unwrap()), all);
        }

        #[test]
        fn bf16_rounds_both_factors_and_sums_in_f32(rows in 1_usize..30, k in 1_usize..80, n in 1_usize..100) {
            let (x, w) = (numbers(1, (rows, k)), numbers(2, (n, k)));
            let panels = Panels::of(&w, DType::BF16).unwrap().unwrap();
            let found = flat(&linear(&x, &panels, Plus::default()).unwrap());
            for (a, e) in found.iter().zip(chain(&x, &w, bf16_of)) {
                let tolerance = if tile::has_fast_dot() { 1e-5 * k as f32 } else { 0.0 };
                prop_assert!((a - e).abs() <= tolerance);
            }
        }

        #[test]
        fn a_pair_is_joined_in_its_own_columns(rows in 1_usize..20, k in 1_usize..40, n in 1_usize..80) {
            let (x, g, u) = (numbers(1, (rows, k)), numbers(2, (n, k)), numbers(3, (n, k)));
            let pair = Panels::of_pair(&g, &u, DType::F32).unwrap().unwrap();
            let single = |w| {
                let panels = Panels::of(w, DType::F32).unwrap().unwrap();
                linear(&x, &panels, Plus::default()).unwrap()
            };
            let expected = Activation::Silu.gated(&single(&g), &single(&u)).unwrap();
            prop_assert_eq!(flat(&gated(&x, &pair, Activation::Silu, n).unwrap()), flat(&expected));
            let alone = Activation::Silu.apply(&single(&g)).unwrap();
            prop_assert_eq!(flat(&gate(&x, &pair, Activation::Silu, n).unwrap()), flat(&alone));
        }

        #[test]
        fn rounding_is_that_of_the_half_crate(bits: u32) {
            let x = f32::from_bits(bits);
            prop_assume!(!x.is_nan());
            prop_assert_eq!(round(x), bf16_of(x));
        }
    }

    #[test]
    fn a_row_alone_equals_the_row_in_a_batch() {
        let (x, w) = (numbers(1, (1000, 96)), numbers(2, (200, 96)));
        for dtype in [DType::F32, DType::BF16] {
            let panels = Panels::of(&w, dtype).unwrap().unwrap();
            let all = flat(&linear(&x, &panels, Plus::default()).unwrap());
            for row in [0, 7, 8, 500, 999] {
                let alone =
                    flat(&linear(&x.narrow(0, row, 1).unwrap(), &panels, Plus::default()).unwrap());
                assert_eq!(alone, all[row * 200..(row + 1) * 200], "row {row}, {dtype:?}");
            }
        }
    }

    #[test]
    fn tasks_cover_every_tile_once() {
        for (rows, k, panels) in
            [(1, 8, 1), (7, 576, 4), (2016, 576, 32), (5000, 4864, 19), (0, 8, 3)]
        {
            let mut seen = vec![0; rows * panels];
            for (rows, group) in tasks(rows, k, panels) {
                rows.for_each(|r| group.clone().for_each(|p| seen[r * panels + p] += 1));
            }
            assert!(seen.iter().all(|n| *n == 1), "{rows} {k} {panels}");
        }
    }

    #[test]
    fn operands_that_do_not_fit_are_refused() {
        let panels = Panels::of(&numbers(1, (4, 6)), DType::F32).unwrap().unwrap();
        assert!(linear(&numbers(2, (3, 5)), &panels, Plus::default()).is_err());
        let term = numbers(3, (3, 5));
        let (bias, residual) = (
            Plus { bias: Some(&term), residual: None },
            Plus { bias: None, residual: Some(&term) },
        );
        assert!(linear(&numbers(2, (3, 6)), &panels, bias).is_err());
        assert!(linear(&numbers(2, (3, 6)), &panels, residual).is_err());
        assert!(gated(&numbers(2, (3, 6)), &panels, Activation::Silu, 4).is_err());
        let long = numbers(1, (4, 6)).to_dtype(DType::F64).unwrap();
        assert!(Panels::of(&long, DType::F32).unwrap().is_none());
    }
}
