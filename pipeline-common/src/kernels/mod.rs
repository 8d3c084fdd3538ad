//! One file per hot operation: the fast CPU path beside its plain reference.
//!
//! Those of the forward pass take and return tensors: f32 in main memory goes to a loop of our
//! own (rayon over rows, vector instructions chosen at run time), anything else, and the tests,
//! to the same formula in candle's operations. Those of the SAE work on row-major f32 slices in
//! place. Results do not depend on the number of threads: work is split by output rows, and sums
//! are taken in a fixed order.

mod elementary;
pub(crate) mod host;

pub mod activation;
pub mod adam;
pub mod attention;
pub mod columns;
pub mod norm;
pub mod panels;
pub mod product;
pub mod rope;
pub mod sparse;
pub mod topk;
pub mod vector;

#[cfg(test)]
mod testing {
    use candle_core::{Device, Tensor};

    /// Numbers between -2 and 2 that differ from one another and are the same in every run.
    pub fn numbers(seed: u32, shape: impl Into<candle_core::Shape>) -> Tensor {
        let shape = shape.into();
        let mut state = u64::from(seed) * 2 + 1;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 40) as f32 / (1 << 22) as f32 - 2.0
        };
        let data: Vec<f32> = (0..shape.elem_count()).map(|_| next()).collect();
        Tensor::from_vec(data, shape, &Device::Cpu).unwrap()
    }

    /// Fails where the tensors differ by more than `tolerance`.
    pub fn assert_close(a: &Tensor, b: &Tensor, tolerance: f32) {
        assert_eq!(a.dims(), b.dims());
        let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for (i, (a, b)) in flat(a).iter().zip(flat(b)).enumerate() {
            assert!((a - b).abs() <= tolerance, "number {i}: {a} against {b}");
        }
    }
}
