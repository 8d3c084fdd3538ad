//! What a forward pass costs.

use super::{Hook, ModelInfo, Point, info::Family};

/// Floating-point operations to bring one token to a hook, in sentences of `mean_length` tokens.
///
/// Counts products only, two operations per multiplication; norms and the like add a few percent
/// of memory traffic and next to no arithmetic.
pub fn flops_per_token(info: &ModelInfo, hook: &Hook, mean_length: f64) -> f64 {
    let (d, mlp) = (info.d_model as f64, info.d_mlp as f64);
    let (heads, kv) = ((info.n_heads * info.d_head) as f64, (info.n_kv_heads * info.d_head) as f64);
    let (mlp_products, seen) = match &info.family {
        Family::Decoder(_) => (3.0, (mean_length + 1.0) / 2.0),
        Family::Bert(_) => (2.0, mean_length),
    };
    let products = d * (2.0 * heads + 2.0 * kv) + mlp_products * d * mlp;
    let attention = 2.0 * heads * seen;
    let last = match hook.point {
        Point::Logits => d * info.vocab_size as f64,
        Point::Pooler => d * d,
        _ => 0.0,
    };
    2.0 * (hook.blocks(info) as f64 * (products + attention) + last)
}

#[cfg(test)]
mod tests {
    use super::{super::info::testing::tiny, *};

    #[test]
    fn flops_grow_with_depth_and_length() {
        let info = tiny("llama", "LlamaForCausalLM");
        let at = |layer, length| {
            flops_per_token(&info, &Hook { layer: Some(layer), point: Point::ResidMid }, length)
        };
        assert_eq!(at(0, 1.0), 2.0 * (4.0 * 48.0 * 48.0 + 3.0 * 48.0 * 96.0 + 2.0 * 48.0));
        assert_eq!(at(2, 10.0), 3.0 * at(0, 10.0));
        assert!(at(0, 100.0) > at(0, 10.0));
    }
}
