//! Microkernels: a few rows times one panel, one chain of fused multiply-adds per element.
//!
//! The chain runs over k in order and starts at zero, in every vector width and on every number of
//! rows, so all of these give the same bits as the plain loop. Only [`dot`] differs: its
//! instruction adds two products at a time.

use half::bf16;

/// Columns of a panel: three AVX-512 registers.
pub const COLUMNS: usize = 48;
/// Rows of a tile: 8 x 3 sums leave room for the panel's row and one factor among 32 registers.
pub const ROWS: usize = 8;

/// Sums of [`ROWS`] rows over the columns of one panel.
pub type Tile = [[f32; COLUMNS]; ROWS];

/// The instructions that a product uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// Sixteen lanes.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// Eight lanes.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// What the compiler makes of the plain loop.
    Plain,
}

impl Kernel {
    /// The widest that this processor has.
    pub fn best() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f") {
                return Self::Avx512;
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                return Self::Avx2;
            }
        }
        Self::Plain
    }

    /// `tile[r][c] = Σᵢ x[r · stride + i] panel[i][c]` for `rows` rows.
    ///
    /// # Panics
    /// If `x` or `panel` is too short, or there are no rows or more than [`ROWS`].
    pub fn run(self, x: &[f32], stride: usize, rows: usize, panel: &[f32], tile: &mut Tile) {
        self.run_first(x, stride, (rows, COLUMNS), panel, tile);
    }

    /// The same of the panel's first `columns`; sums of those behind them mean nothing.
    ///
    /// # Panics
    /// As [`Self::run`].
    pub fn run_first(
        self,
        x: &[f32],
        stride: usize,
        (rows, columns): (usize, usize),
        panel: &[f32],
        tile: &mut Tile,
    ) {
        let k = panel.len() / COLUMNS;
        assert!((1..=ROWS).contains(&rows) && (rows - 1) * stride + k <= x.len(), "tile of {rows}");
        match self {
            #[cfg(target_arch = "x86_64")]
            #[expect(unsafe_code, reason = "vector instructions work on pointers")]
            // SAFETY: `best` found the instructions; `rows` rows of k numbers, `stride` apart, were
            // just seen to lie inside `x`, and the panel has k rows of COLUMNS numbers.
            Self::Avx512 => unsafe {
                let (x, panel) = (x.as_ptr(), (panel.as_ptr(), k));
                match columns {
                    0..=16 => x86::avx512_third(x, stride, rows, panel, tile),
                    17..=32 => x86::avx512_two_thirds(x, stride, rows, panel, tile),
                    _ => x86::avx512(x, stride, rows, panel, tile),
                }
            },
            #[cfg(target_arch = "x86_64")]
            #[expect(unsafe_code, reason = "vector instructions work on pointers")]
            // SAFETY: as above.
            Self::Avx2 => unsafe {
                x86::avx2(x.as_ptr(), stride, (rows, columns), (panel.as_ptr(), k), tile);
            },
            Self::Plain => plain(x, stride, rows, panel, tile),
        }
    }
}

/// The formula.
fn plain(x: &[f32], stride: usize, rows: usize, panel: &[f32], tile: &mut Tile) {
    for (r, sums) in tile.iter_mut().enumerate().take(rows) {
        sums.fill(0.0);
        let (panel, _) = panel.as_chunks::<COLUMNS>();
        for (x, row) in x[r * stride..].iter().zip(panel) {
            for (sum, w) in sums.iter_mut().zip(row) {
                *sum = x.mul_add(*w, *sum);
            }
        }
    }
}

/// Whether the processor multiplies pairs of bf16 faster than single f32.
///
/// Intel's cores without AMX issue VDPBF16PS every other cycle, which makes it half as fast as
/// widening to f32; AMD's Zen 4 and later issue it every cycle, twice as fast.
pub fn has_fast_dot() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        let vendor = std::arch::x86_64::__cpuid(0);
        has_dot() && (vendor.ebx, vendor.edx, vendor.ecx) == (0x6874_7541, 0x6974_6e65, 0x444d_4163)
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Whether the processor multiplies pairs of bf16 at all.
pub fn has_dot() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16")
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// As [`Kernel::run`] on pairs of bf16: `x[r · stride + i]` and `panel[i][c]` hold elements 2i
/// and 2i + 1.
///
/// # Panics
/// If `x` or `panel` is too short, there are no rows or more than [`ROWS`], or the processor has
/// no such instruction.
pub fn dot(x: &[[bf16; 2]], stride: usize, rows: usize, panel: &[[bf16; 2]], tile: &mut Tile) {
    let k = panel.len() / COLUMNS;
    assert!((1..=ROWS).contains(&rows) && (rows - 1) * stride + k <= x.len(), "tile of {rows}");
    assert!(has_dot(), "AVX512-BF16");
    #[cfg(target_arch = "x86_64")]
    #[expect(unsafe_code, reason = "vector instructions work on pointers")]
    // SAFETY: the instructions are there; the rows lie inside `x` and the panel has k rows of
    // COLUMNS pairs, as just seen.
    unsafe {
        x86::dot(x.as_ptr().cast(), stride, rows, (panel.as_ptr().cast(), k), tile);
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (stride, tile);
}

#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "vector instructions work on pointers")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{COLUMNS, Tile};

    /// Where a block's sums go.
    struct Place<'a> {
        tile: &'a mut Tile,
        row: usize,
        column: usize,
    }

    /// Defines the sums of R rows over V vectors of a panel.
    macro_rules! block {
        ($name:ident, $features:literal, $factor:ty, $lanes:literal,
         $zero:ident, $load:ident, $splat:ident, $add:ident, $store:ident) => {
            /// # Safety
            /// The processor has the instructions; from the place's row on `x` has R rows of k
            /// factors, `stride` apart, and `panel` k rows of COLUMNS factors.
            #[target_feature(enable = $features)]
            unsafe fn $name<const R: usize, const V: usize>(
                x: *const $factor,
                stride: usize,
                panel: *const $factor,
                k: usize,
                place: Place<'_>,
            ) {
                let Place { tile, row, column } = place;
                let mut sums = [[$zero(); V]; R];
                // SAFETY: the caller vouches for the pointers.
                unsafe {
                    let (mut x, mut panel) = (x.add(row * stride), panel.add(column));
                    for _ in 0..k {
                        let mut w = [$load(panel); V];
                        for v in 1..V {
                            w[v] = $load(panel.add(v * $lanes));
                        }
                        for r in 0..R {
                            let factor = $splat(x.add(r * stride));
                            for v in 0..V {
                                sums[r][v] = $add(sums[r][v], factor, w[v]);
                            }
                        }
                        x = x.add(1);
                        panel = panel.add(COLUMNS);
                    }
                }
                for (r, sums) in sums.iter().enumerate() {
                    for (v, sum) in sums.iter().enumerate() {
                        let to = &mut tile[row + r][column + v * $lanes..][..$lanes];
                        // SAFETY: `to` holds one vector.
                        unsafe { $store(to.as_mut_ptr(), *sum) };
                    }
                }
            }
        };
    }

    block!(
        block512,
        "avx512f",
        f32,
        16,
        _mm512_setzero_ps,
        _mm512_loadu_ps,
        splat512,
        add512,
        _mm512_storeu_ps
    );
    block!(
        block256,
        "avx2,fma",
        f32,
        8,
        _mm256_setzero_ps,
        _mm256_loadu_ps,
        splat256,
        add256,
        _mm256_storeu_ps
    );
    block!(
        block_dot,
        "avx512f,avx512bf16",
        u32,
        16,
        _mm512_setzero_ps,
        load_pairs,
        splat_pair,
        _mm512_dpbf16_ps,
        _mm512_storeu_ps
    );

    /// # Safety
    /// AVX-512; `x` points to a number.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn splat512(x: *const f32) -> __m512 {
        // SAFETY: the caller vouches for the pointer.
        unsafe { _mm512_set1_ps(*x) }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn add512(sum: __m512, a: __m512, b: __m512) -> __m512 {
        _mm512_fmadd_ps(a, b, sum)
    }

    /// # Safety
    /// AVX2; `x` points to a number.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn splat256(x: *const f32) -> __m256 {
        // SAFETY: the caller vouches for the pointer.
        unsafe { _mm256_set1_ps(*x) }
    }

    #[inline]
    #[target_feature(enable = "fma")]
    fn add256(sum: __m256, a: __m256, b: __m256) -> __m256 {
        _mm256_fmadd_ps(a, b, sum)
    }

    /// # Safety
    /// AVX-512; `x` points to 16 pairs.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn load_pairs(x: *const u32) -> __m512bh {
        // SAFETY: the caller vouches for the pointer; both types are 64 bytes without invalid
        // values.
        unsafe { std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(x.cast())) }
    }

    /// # Safety
    /// AVX-512; `x` points to a pair.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn splat_pair(x: *const u32) -> __m512bh {
        // SAFETY: as above.
        unsafe { std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32((*x).cast_signed())) }
    }

    /// Defines a tile of up to eight rows as one block of some vectors.
    macro_rules! whole {
        ($name:ident, $block:ident, $vectors:literal, $features:literal, $factor:ty) => {
            /// # Safety
            /// As the block's, with `rows` rows.
            #[target_feature(enable = $features)]
            pub unsafe fn $name(
                x: *const $factor,
                stride: usize,
                rows: usize,
                (panel, k): (*const $factor, usize),
                tile: &mut Tile,
            ) {
                let place = Place { tile, row: 0, column: 0 };
                // SAFETY: the caller vouches for the pointers.
                unsafe {
                    match rows {
                        1 => $block::<1, $vectors>(x, stride, panel, k, place),
                        2 => $block::<2, $vectors>(x, stride, panel, k, place),
                        3 => $block::<3, $vectors>(x, stride, panel, k, place),
                        4 => $block::<4, $vectors>(x, stride, panel, k, place),
                        5 => $block::<5, $vectors>(x, stride, panel, k, place),
                        6 => $block::<6, $vectors>(x, stride, panel, k, place),
                        7 => $block::<7, $vectors>(x, stride, panel, k, place),
                        _ => $block::<8, $vectors>(x, stride, panel, k, place),
                    }
                }
            }
        };
    }

    whole!(avx512, block512, 3, "avx512f", f32);
    whole!(avx512_two_thirds, block512, 2, "avx512f", f32);
    whole!(avx512_third, block512, 1, "avx512f", f32);
    whole!(dot, block_dot, 3, "avx512f,avx512bf16", u32);

    /// Sixteen registers hold 4 x 2 sums, so a tile is several blocks.
    ///
    /// # Safety
    /// As the block's, with `rows` rows.
    #[target_feature(enable = "avx2,fma")]
    pub unsafe fn avx2(
        x: *const f32,
        stride: usize,
        (rows, columns): (usize, usize),
        (panel, k): (*const f32, usize),
        tile: &mut Tile,
    ) {
        for row in (0..rows).step_by(4) {
            for column in (0..columns.min(COLUMNS)).step_by(16) {
                let place = Place { tile, row, column };
                // SAFETY: the caller vouches for the pointers.
                unsafe {
                    match rows - row {
                        1 => block256::<1, 2>(x, stride, panel, k, place),
                        2 => block256::<2, 2>(x, stride, panel, k, place),
                        3 => block256::<3, 2>(x, stride, panel, k, place),
                        _ => block256::<4, 2>(x, stride, panel, k, place),
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wave(n: usize, step: f32) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * step).sin()).collect()
    }

    fn kernels() -> Vec<Kernel> {
        #[cfg(target_arch = "x86_64")]
        {
            let all = [
                (Kernel::Avx512, is_x86_feature_detected!("avx512f")),
                (Kernel::Avx2, is_x86_feature_detected!("fma")),
            ];
            all.into_iter().filter(|(_, found)| *found).map(|(kernel, _)| kernel).collect()
        }
        #[cfg(not(target_arch = "x86_64"))]
        vec![Kernel::Plain]
    }

    #[test]
    fn every_width_and_number_of_rows_gives_the_bits_of_the_plain_loop() {
        for (k, stride) in [(1, 1), (7, 9), (64, 64), (300, 301)] {
            let (x, panel) = (wave(ROWS * stride, 0.37), wave(k * COLUMNS, 0.11));
            for rows in 1..=ROWS {
                let mut expected = [[9.0; COLUMNS]; ROWS];
                plain(&x, stride, rows, &panel, &mut expected);
                for kernel in kernels() {
                    let mut found = [[9.0; COLUMNS]; ROWS];
                    kernel.run(&x, stride, rows, &panel, &mut found);
                    assert_eq!(found, expected, "{kernel:?}, {rows} rows, k {k}");
                    for columns in [1, 15, 16, 17, 32, 33, 47] {
                        let mut found = [[9.0; COLUMNS]; ROWS];
                        kernel.run_first(&x, stride, (rows, columns), &panel, &mut found);
                        for (found, expected) in found.iter().zip(&expected) {
                            assert_eq!(found[..columns], expected[..columns], "{columns} columns");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn pairs_of_bf16_sum_to_the_same_within_rounding() {
        if !has_dot() {
            return;
        }
        let k = 100;
        let pairs = |x: &[f32]| -> Vec<[bf16; 2]> {
            x.chunks_exact(2).map(|p| [bf16::from_f32(p[0]), bf16::from_f32(p[1])]).collect()
        };
        let x = wave(ROWS * 2 * k, 0.37);
        // panel[i][c] holds rows 2i and 2i + 1 of column c.
        let panel = wave(2 * k * COLUMNS, 0.11);
        let (x, panel) = (pairs(&x), pairs(&panel));
        for rows in 1..=ROWS {
            let mut tile = [[0.0; COLUMNS]; ROWS];
            dot(&x, k, rows, &panel, &mut tile);
            for r in 0..rows {
                for c in 0..COLUMNS {
                    let term = |i: usize, j: usize| {
                        x[r * k + i][j].to_f64() * panel[i * COLUMNS + c][j].to_f64()
                    };
                    let exact: f64 = (0..k).map(|i| term(i, 0) + term(i, 1)).sum();
                    let size: f64 = (0..k).map(|i| term(i, 0).abs() + term(i, 1).abs()).sum();
                    assert!((f64::from(tile[r][c]) - exact).abs() < 1e-6 * size);
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "tile of 3")]
    fn rows_beyond_the_slice_are_refused() {
        Kernel::best().run(&[0.0; 10], 5, 3, &[0.0; COLUMNS], &mut [[0.0; COLUMNS]; ROWS]);
    }
}
