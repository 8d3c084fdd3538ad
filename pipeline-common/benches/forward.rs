//! Tokens a second of the forward pass, on random checkpoints that the bench writes itself.
//!
//! `cargo bench -p pipeline-common --bench forward`; one element is one token.
#![expect(clippy::unwrap_used, reason = "a bench fails by panicking")]

use std::{collections::HashMap, path::Path};

use candle_core::{DType, Device, Tensor, safetensors};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use pipeline_common::model::{self, Hook, Packed, Point};

/// A Llama with tied embeddings; `layers` are as many as the hook needs.
struct Shape {
    name: &'static str,
    d: usize,
    mlp: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
}

const VOCABULARY: usize = 1000;

const SHAPES: [Shape; 2] = [
    Shape { name: "small", d: 128, mlp: 384, layers: 4, heads: 4, kv_heads: 2 },
    // The first half of SmolLM2-135M: what a capture at its middle layer computes.
    Shape { name: "smollm2_135m_middle", d: 576, mlp: 1536, layers: 16, heads: 9, kv_heads: 3 },
];

fn write_checkpoint(dir: &Path, s: &Shape) {
    let config = serde_json::json!({
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": s.d,
        "intermediate_size": s.mlp, "num_hidden_layers": s.layers,
        "num_attention_heads": s.heads, "num_key_value_heads": s.kv_heads,
        "max_position_embeddings": 2048, "vocab_size": VOCABULARY, "tie_word_embeddings": true,
    });
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let kv = s.d / s.heads * s.kv_heads;
    let mut tensors = HashMap::new();
    let mut matrix = |name: String, rows: usize, cols: usize| {
        let scale = 1.0 / (cols as f64).sqrt();
        let weight = Tensor::randn(0.0, scale, (rows, cols), &Device::Cpu).unwrap();
        tensors.insert(name, weight.to_dtype(DType::F32).unwrap());
    };
    matrix("model.embed_tokens.weight".into(), VOCABULARY, s.d);
    for layer in 0..s.layers {
        for (module, rows, cols) in [
            ("self_attn.q_proj", s.d, s.d),
            ("self_attn.k_proj", kv, s.d),
            ("self_attn.v_proj", kv, s.d),
            ("self_attn.o_proj", s.d, s.d),
            ("mlp.gate_proj", s.mlp, s.d),
            ("mlp.up_proj", s.mlp, s.d),
            ("mlp.down_proj", s.d, s.mlp),
        ] {
            matrix(format!("model.layers.{layer}.{module}.weight"), rows, cols);
        }
    }
    for layer in 0..s.layers {
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            let ones = Tensor::ones(s.d, DType::F32, &Device::Cpu).unwrap();
            tensors.insert(format!("model.layers.{layer}.{norm}.weight"), ones);
        }
    }
    safetensors::save(&tensors, dir.join("model.safetensors")).unwrap();
}

fn forward(c: &mut Criterion) {
    let mut group = c.benchmark_group("forward");
    group.sample_size(10);
    for shape in &SHAPES {
        let dir = tempfile::tempdir().unwrap();
        write_checkpoint(dir.path(), shape);
        let hook = Hook { layer: Some(shape.layers - 1), point: Point::ResidMid };
        let sentence = |i: usize| (0..128).map(move |j| ((i * 131 + j * 17) % VOCABULARY) as u32);
        let batch = Packed::new((0..32).map(|i| sentence(i).collect::<Vec<_>>()));
        group.throughput(Throughput::Elements(batch.rows() as u64));
        for dtype in [DType::F32, DType::BF16] {
            let model = model::load(dir.path(), &[hook], &Device::Cpu, dtype).unwrap();
            group.bench_function(format!("{}/{}", shape.name, dtype.as_str()), |b| {
                b.iter(|| model.forward(&batch, &[hook], &mut |_, _| Ok(None)).unwrap());
            });
        }
    }
    group.finish();
}

criterion_group!(benches, forward);
criterion_main!(benches);
