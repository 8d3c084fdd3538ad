//! The products of dense blocks: in f32 through `gemm`, in bf16, summed in f32, over panels.

use candle_core::DType;

use crate::{
    kernels::{
        panels::Panels,
        product::{Matrix, Write, product},
    },
    sae::Parameters,
};

/// The decoder as bf16 products read it, and working space.
#[derive(Debug)]
pub struct Products {
    precision: DType,
    /// As [d_out, d_sae] and as [d_sae, d_out], once a step and only if a block is dense.
    decoder: [Panels; 2],
    is_loaded: bool,
    /// Rows of a block.
    rows: Panels,
}

impl Default for Products {
    fn default() -> Self {
        let empty = || Panels::empty(DType::BF16);
        let decoder = [empty(), empty()];
        Self { precision: DType::F32, decoder, is_loaded: false, rows: empty() }
    }
}

impl Products {
    /// Begins a step, whose decoder is another.
    pub fn begin(&mut self, precision: DType) {
        self.precision = precision;
        self.is_loaded = false;
    }

    /// `out += acts · decoder`: `[rows, d_sae]`, `[rows, d_out]`.
    pub fn decode(&mut self, params: &Parameters, acts: &[f32], out: &mut [f32]) {
        if self.precision == DType::BF16 {
            let [decoder, _] = self.decoder(params);
            return decoder.product(acts, out, Write::Add);
        }
        let acts = Matrix::new(acts, acts.len() / params.d_sae, params.d_sae);
        product(acts, decoder(params), out, Write::Add);
    }

    /// `grads = out · decoderᵀ`: `[rows, d_out]`, `[rows, d_sae]`.
    pub fn decode_back(&mut self, params: &Parameters, out: &[f32], grads: &mut [f32]) {
        if self.precision == DType::BF16 {
            let [_, decoder] = self.decoder(params);
            return decoder.product(out, grads, Write::Replace);
        }
        let out = Matrix::new(out, out.len() / params.d_out, params.d_out);
        product(out, decoder(params).t(), grads, Write::Replace);
    }

    /// `sums += factorsᵀ · rows`: `[n, d_sae]`, `[n, width]`, `[d_sae, width]`.
    pub fn add_sums(&mut self, factors: &[f32], (rows, width): (&[f32], usize), sums: &mut [f32]) {
        let n = rows.len() / width;
        if self.precision == DType::BF16 {
            self.rows.fill_transposed(width, n, rows);
            return self.rows.product_of_transposed(factors, sums, Write::Add);
        }
        let factors = Matrix::new(factors, n, factors.len() / n);
        product(factors.t(), Matrix::new(rows, n, width), sums, Write::Add);
    }

    fn decoder(&mut self, params: &Parameters) -> &[Panels; 2] {
        if !self.is_loaded {
            let Parameters { d_out, d_sae, ref w_dec, .. } = *params;
            let [decoder, transposed] = &mut self.decoder;
            decoder.fill_transposed(d_out, d_sae, w_dec);
            transposed.fill(d_sae, d_out, |latent| &w_dec[latent * d_out..][..d_out]);
            self.is_loaded = true;
        }
        &self.decoder
    }
}

fn decoder(params: &Parameters) -> Matrix<'_> {
    Matrix::new(&params.w_dec, params.d_sae, params.d_out)
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::sae::parameters::Shape;

    /// Of factors that are bf16 numbers both precisions give the same, of others bf16 does not.
    #[test]
    fn bf16_rounds_factors_and_nothing_else() {
        let (n, d_in, d_sae) = (9, 50, 103);
        for (round, tolerance) in [(true, 0.0..1e-4), (false, 1e-3..0.1)] {
            let wave = |len: usize, f: f32| -> Vec<f32> {
                let numbers = (0..len).map(|i| (i as f32 * f).sin());
                numbers.map(|x| if round { bf16::from_f32(x).to_f32() } else { x }).collect()
            };
            let mut params = Parameters::zeros(Shape::autoencoder(d_in, d_sae));
            params.w_dec = wave(d_sae * d_in, 0.7);
            let (acts, rows) = (wave(n * d_sae, 0.3), wave(n * d_in, 0.9));
            let run = |precision| {
                let mut products = Products::default();
                products.begin(precision);
                let (mut out, mut grads) = (rows.clone(), vec![5.0; n * d_sae]);
                let mut sums = vec![0.5; d_sae * d_in];
                products.decode(&params, &acts, &mut out);
                products.decode_back(&params, &rows, &mut grads);
                products.add_sums(&acts, (&rows, d_in), &mut sums);
                [out, grads, sums]
            };
            for (exact, found) in run(DType::F32).iter().zip(run(DType::BF16)) {
                let errors = exact.iter().zip(&found).map(|(a, b)| (a - b).abs());
                let error = errors.fold(0.0_f32, f32::max);
                assert!(tolerance.contains(&error), "{error}, rounded before: {round}");
            }
        }
    }
}
