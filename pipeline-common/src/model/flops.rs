//! What a forward pass costs.

use super::{Hook, ModelInfo, Point};

/// Floating-point operations to bring one token to a hook, in sentences of `mean_length` tokens.
///
/// Counts products only, two operations per multiplication; norms and the like add a few percent
/// of memory traffic and next to no arithmetic.
pub fn flops_per_token(info: &ModelInfo, hook: &Hook, mean_length: f64) -> f64 {
    let d = info.d_model as f64;
    let heads = (info.n_heads * info.d_head) as f64;
    let costs = info.block_costs().into_iter().take(hook.blocks(info));
    let blocks: f64 =
        costs.map(|(products, sees)| products + 2.0 * heads * sees.mean(mean_length)).sum();
    let last = match hook.point {
        Point::Logits => d * info.vocab_size as f64,
        Point::Pooler => d * d,
        _ => 0.0,
    };
    2.0 * (blocks + last)
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
