"""The tiny checkpoints: configurations as published repositories write them, and what each tests."""
from dataclasses import dataclass, field
from typing import Callable

import torch
import transformers as tf
from tokenizers import Tokenizer

from hooks import ENCODERS
from tiny_tokenizers import tok_llama3, tok_qwen, word_piece

ACTIVATIONS = ("ResidPost", "FinalNorm", "Logits")


@dataclass
class Spec:
    """One checkpoint and its goldens.

    `features` names what the golden is there to catch: changes of the configuration, or of the loaded
    model, that take the feature away. The last block or the logits must feel each of them.
    """

    config: dict
    note: str
    features: dict[str, dict | Callable[[tf.PreTrainedModel], None]] = field(default_factory=dict)
    # With a tokenizer, sentences are texts; without, pseudo-random ids.
    tokenizer: Callable[[int], Tokenizer] | None = None
    pad: str | None = None
    shards: int = 1
    # What a published repository's tensors are called, and what else it holds.
    rename: Callable[[dict], dict] | None = None
    # Ids of the long sentence.
    long: int = 24
    # Hook points that are stored; all of them if None.
    points: tuple[str, ...] | None = None
    # Whether generation with a cache is the same as without.
    cache: bool = True

    @property
    def generates(self) -> bool:
        """Whether generated tokens are stored."""
        return self.config["model_type"] not in ENCODERS

    @property
    def dtype(self) -> torch.dtype:
        return getattr(torch, self.config["torch_dtype"])


def without(path: str) -> Callable[[tf.PreTrainedModel], None]:
    """Takes out every module whose path ends so."""

    def change(model):
        found = [name for name, _ in model.named_modules() if name.endswith(path)]
        assert found, path
        for name in found:
            model.set_submodule(name, torch.nn.Identity())

    return change


def zeroed(suffix: str) -> Callable[[tf.PreTrainedModel], None]:
    """Sets every parameter whose name ends so to zero."""

    def change(model):
        found = [p for name, p in model.named_parameters() if name.endswith(suffix)]
        assert found, suffix
        for p in found:
            p.zero_()

    return change


def positions_from_zero(model: tf.PreTrainedModel) -> None:
    model.embeddings.padding_idx = -1


def unscaled_embeddings(model: tf.PreTrainedModel) -> None:
    model.model.embed_tokens.embed_scale.fill_(1.0)


# ------------------------------------------------------ with tokenizers, in f32

LLAMA_TIED_ROPE3 = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 508,
    "eos_token_id": 509,
    "head_dim": 16,
    "hidden_act": "silu",
    "hidden_size": 64,
    "initializer_range": 0.02,
    "intermediate_size": 128,
    "max_position_embeddings": 256,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "pad_token_id": 510,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "tie_word_embeddings": True,
    "use_cache": True,
    "vocab_size": 512,
    "torch_dtype": "float32",
    "rope_theta": 10000.0,
    "rope_scaling": {
        "factor": 8.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 64,
        "rope_type": "llama3",
    },
}
QWEN2 = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": None,
    "eos_token_id": 509,
    "hidden_act": "silu",
    "hidden_size": 56,
    "initializer_range": 0.02,
    "intermediate_size": 112,
    "max_position_embeddings": 256,
    "max_window_layers": 2,
    "model_type": "qwen2",
    "num_attention_heads": 7,
    "num_hidden_layers": 2,
    "num_key_value_heads": 1,
    "pad_token_id": 509,
    "rms_norm_eps": 1e-06,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 512,
    "torch_dtype": "float32",
    "rope_theta": 1000000.0,
    "rope_scaling": None,
}
BERT = {
    "add_cross_attention": False,
    "architectures": ["BertModel"],
    "attention_probs_dropout_prob": 0.1,
    "bos_token_id": None,
    "classifier_dropout": None,
    "eos_token_id": None,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 48,
    "initializer_range": 0.02,
    "intermediate_size": 96,
    "is_decoder": False,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 96,
    "model_type": "bert",
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "pad_token_id": 0,
    "tie_word_embeddings": True,
    "type_vocab_size": 2,
    "use_cache": True,
    "vocab_size": 600,
    "torch_dtype": "float32",
}


def with_position_ids(state: dict) -> dict:
    """Sentence-embedding repositories store the position index as an i64 tensor."""
    n = state["embeddings.position_embeddings.weight"].shape[0]
    return {**state, "embeddings.position_ids": torch.arange(n).view(1, n)}


# ------------------------------------------------------------ with random ids

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 80,
}
MISTRAL = {
    "architectures": ["MistralForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    **SIZES,
    "max_position_embeddings": 256,
    "model_type": "mistral",
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "sliding_window": 8,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
}
QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "head_dim": 16,
    "hidden_act": "silu",
    **SIZES,
    "max_position_embeddings": 256,
    "max_window_layers": 2,
    "model_type": "qwen3",
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_sliding_window": False,
}

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    **SIZES,
    "max_position_embeddings": 256,
    "mlp_bias": False,
    "model_type": "llama",
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
}
# Heads of 16, so that scaled frequencies are many.
WIDE_HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1}
GEMMA = {
    "architectures": ["GemmaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "head_dim": 16,
    # The first repositories say gelu, and mean its tanh form.
    "hidden_act": "gelu",
    **SIZES,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
    "model_type": "gemma",
    "pad_token_id": 0,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "torch_dtype": "bfloat16",
    "use_cache": True,
}
GEMMA2 = {
    "architectures": ["Gemma2ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attn_logit_softcapping": 2.0,
    "bos_token_id": 2,
    "cache_implementation": "hybrid",
    "eos_token_id": 1,
    "final_logit_softcapping": 1.5,
    "head_dim": 16,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    **SIZES,
    "max_position_embeddings": 256,
    "model_type": "gemma2",
    "pad_token_id": 0,
    "query_pre_attn_scalar": 4,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000.0,
    "sliding_window": 8,
    "torch_dtype": "bfloat16",
    "use_cache": True,
}
GEMMA3 = {
    "architectures": ["Gemma3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attn_logit_softcapping": None,
    "bos_token_id": 2,
    "cache_implementation": "hybrid",
    "eos_token_id": 1,
    "final_logit_softcapping": None,
    "head_dim": 16,
    "hidden_activation": "gelu_pytorch_tanh",
    **SIZES,
    "num_hidden_layers": 3,
    "max_position_embeddings": 256,
    "model_type": "gemma3_text",
    "pad_token_id": 0,
    "query_pre_attn_scalar": 4,
    "rms_norm_eps": 1e-06,
    "rope_local_base_freq": 10000,
    "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    "rope_theta": 1000000,
    "sliding_window": 8,
    "sliding_window_pattern": 3,
    "torch_dtype": "bfloat16",
    "use_cache": True,
}
PHI3 = {
    "architectures": ["Phi3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "embd_pdrop": 0.0,
    "eos_token_id": 2,
    "hidden_act": "silu",
    **SIZES,
    "max_position_embeddings": 128,
    "model_type": "phi3",
    "original_max_position_embeddings": 128,
    "pad_token_id": 2,
    "resid_pdrop": 0.0,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "sliding_window": 8,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
}
# As in Phi-4-mini, three quarters of a head rotate: 12 of 16 numbers, in 6 pairs.
LONGROPE = {
    "long_factor": [1.0, 1.4, 2.2, 3.8, 6.0, 9.5],
    "short_factor": [1.0, 1.05, 1.2, 1.3, 1.6, 2.0],
    "type": "longrope",
}
GPT2 = {
    "activation_function": "gelu_new",
    "architectures": ["GPT2LMHeadModel"],
    "attn_pdrop": 0.1,
    "bos_token_id": 1,
    "embd_pdrop": 0.1,
    "eos_token_id": 1,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "model_type": "gpt2",
    "n_ctx": 96,
    "n_embd": 24,
    "n_head": 3,
    "n_layer": 2,
    "n_positions": 96,
    "resid_pdrop": 0.1,
    "torch_dtype": "float32",
    "vocab_size": 80,
}
GPT_NEOX = {
    "architectures": ["GPTNeoXForCausalLM"],
    "bos_token_id": 0,
    "eos_token_id": 0,
    "hidden_act": "gelu",
    "hidden_size": 32,
    "initializer_range": 0.02,
    "intermediate_size": 40,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 256,
    "model_type": "gpt_neox",
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "rotary_emb_base": 10000,
    "rotary_pct": 0.25,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "use_cache": True,
    "use_parallel_residual": True,
    "vocab_size": 80,
}
OLMO = {
    "architectures": ["OlmoForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "clip_qkv": 0.8,
    "eos_token_id": 2,
    "hidden_act": "silu",
    **SIZES,
    "num_key_value_heads": 4,
    "max_position_embeddings": 256,
    "model_type": "olmo",
    "pad_token_id": 1,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
}
OLMO2 = {
    "architectures": ["Olmo2ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "eos_token_id": 2,
    "hidden_act": "silu",
    **SIZES,
    "max_position_embeddings": 256,
    "model_type": "olmo2",
    "pad_token_id": 1,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 500000,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
}
GRANITE = {
    "architectures": ["GraniteForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attention_multiplier": 0.15,
    "bos_token_id": 0,
    "embedding_multiplier": 3.0,
    "eos_token_id": 0,
    "hidden_act": "silu",
    **SIZES,
    "logits_scaling": 4.0,
    "max_position_embeddings": 256,
    "mlp_bias": False,
    "model_type": "granite",
    "pad_token_id": 0,
    "residual_multiplier": 0.6,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_cache": True,
}
STARCODER2 = {
    "architectures": ["Starcoder2ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "embedding_dropout": 0.0,
    "eos_token_id": 0,
    "hidden_act": "gelu_pytorch_tanh",
    **SIZES,
    "max_position_embeddings": 256,
    "mlp_type": "default",
    "model_type": "starcoder2",
    "norm_epsilon": 1e-05,
    "norm_type": "layer_norm",
    "residual_dropout": 0.0,
    "rope_theta": 10000.0,
    "sliding_window": 8,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_bias": True,
    "use_cache": True,
}
MIXTRAL = {
    "architectures": ["MixtralForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    **SIZES,
    "intermediate_size": 24,
    "max_position_embeddings": 256,
    "model_type": "mixtral",
    "num_experts_per_tok": 2,
    "num_local_experts": 4,
    "output_router_logits": False,
    "rms_norm_eps": 1e-05,
    "rope_theta": 1000000.0,
    "router_aux_loss_coef": 0.02,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
}
QWEN_EXPERTS = {
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "moe_intermediate_size": 16,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "output_router_logits": False,
    "router_aux_loss_coef": 0.001,
}
QWEN2_MOE = {
    **QWEN3,
    **QWEN_EXPERTS,
    "architectures": ["Qwen2MoeForCausalLM"],
    "model_type": "qwen2_moe",
    "norm_topk_prob": False,
    "qkv_bias": True,
    "shared_expert_intermediate_size": 24,
    "tie_word_embeddings": False,
}
del QWEN2_MOE["attention_bias"], QWEN2_MOE["head_dim"]
QWEN3_MOE = {
    **QWEN3,
    **QWEN_EXPERTS,
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "norm_topk_prob": True,
    "tie_word_embeddings": False,
}
ROBERTA = {
    "architectures": ["RobertaForMaskedLM"],
    "attention_probs_dropout_prob": 0.1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 32,
    "initializer_range": 0.02,
    "intermediate_size": 40,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 74,
    "model_type": "roberta",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "pad_token_id": 1,
    "torch_dtype": "float32",
    "type_vocab_size": 1,
    "vocab_size": 80,
}
XLM_ROBERTA = {
    **ROBERTA,
    "architectures": ["XLMRobertaModel"],
    "model_type": "xlm-roberta",
    "output_past": True,
    "position_embedding_type": "absolute",
    "torch_dtype": "float16",
    "use_cache": True,
}
MODERNBERT = {
    "architectures": ["ModernBertForMaskedLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 2,
    "classifier_activation": "gelu",
    "classifier_bias": False,
    "classifier_dropout": 0.0,
    "classifier_pooling": "mean",
    "cls_token_id": 2,
    "decoder_bias": True,
    "deterministic_flash_attn": False,
    "embedding_dropout": 0.0,
    "eos_token_id": 3,
    "global_attn_every_n_layers": 2,
    "global_rope_theta": 160000.0,
    "hidden_activation": "gelu",
    "hidden_size": 32,
    "initializer_cutoff_factor": 2.0,
    "initializer_range": 0.02,
    "intermediate_size": 40,
    "layer_norm_eps": 1e-05,
    "local_attention": 12,
    "local_rope_theta": 10000.0,
    "max_position_embeddings": 256,
    "mlp_bias": False,
    "mlp_dropout": 0.0,
    "model_type": "modernbert",
    "norm_bias": False,
    "norm_eps": 1e-05,
    "num_attention_heads": 2,
    "num_hidden_layers": 3,
    "pad_token_id": 1,
    "position_embedding_type": "absolute",
    "sep_token_id": 3,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
    "vocab_size": 80,
}
# What the quantised checkpoints hold: matrices of 16 to 64 rows and columns.
QUANTISED = {**LLAMA, "intermediate_size": 64, "num_hidden_layers": 1}


def with_neox_buffers(state: dict) -> dict:
    """Pythia's repositories store the causal mask, its value and the rotary frequencies beside the weights."""
    state = dict(state)
    for layer in range(GPT_NEOX["num_hidden_layers"]):
        path = f"gpt_neox.layers.{layer}.attention."
        state[path + "bias"] = torch.ones(8, 8, dtype=torch.uint8).tril().view(1, 1, 8, 8)
        state[path + "masked_bias"] = torch.tensor(-1e4, dtype=torch.float16)
        state[path + "rotary_emb.inv_freq"] = torch.tensor([1.0, 0.01])
    return state


SPECS: dict[str, Spec] = {
    "llama_tied_rope3": Spec(
        LLAMA_TIED_ROPE3,
        "Llama, grouped-query attention, tied embeddings, rope_scaling llama3",
        {"scaling": {"rope_scaling": None}},
        tokenizer=tok_llama3,
        pad="<|finetune_right_pad_id|>",
        long=48,
    ),
    "qwen2": Spec(
        QWEN2,
        "Qwen2, bias on q/k/v, one key-value head, tied embeddings",
        {"biases": zeroed("_proj.bias")},
        tokenizer=tok_qwen,
        pad="<|endoftext|>",
        long=48,
    ),
    "bert": Spec(
        BERT,
        "BERT encoder, no prefix on tensor names, no pooler use",
        {"positions": zeroed("position_embeddings.weight")},
        tokenizer=word_piece,
        pad="[PAD]",
        rename=with_position_ids,
        long=48,
    ),
    "mistral": Spec(
        MISTRAL,
        "Mistral, sliding window of 8, untied head",
        {"window": {"sliding_window": None}},
    ),
    "qwen3": Spec(
        QWEN3,
        "Qwen3, norm of each query and key head, heads wider than d / heads, tied embeddings",
        {"qk norm": without("_norm")},
    ),
    "gpt2": Spec(
        GPT2,
        "GPT-2, learned positions, transposed weights, gelu_new",
        {"positions": zeroed("wpe.weight"), "biases": zeroed("attn.c_attn.bias")},
    ),
    "gpt_neox": Spec(
        GPT_NEOX,
        "GPT-NeoX, parallel residual, a quarter of each head rotates, exact GELU",
        {"partial rotary": {"rotary_pct": 1.0}, "parallel": {"use_parallel_residual": False}},
        rename=with_neox_buffers,
    ),
    "gpt_neox_sequential": Spec(
        {**GPT_NEOX, "use_parallel_residual": False},
        "GPT-NeoX with attention and feed-forward block one after the other",
        {"sequential": {"use_parallel_residual": True}},
        points=("ResidMid", "MlpIn", *ACTIVATIONS),
    ),
    "gemma": Spec(
        GEMMA,
        "Gemma, scaled embeddings, norms around one, heads wider than d / heads, one key-value head",
        {"embedding scale": unscaled_embeddings},
    ),
    "gemma2": Spec(
        GEMMA2,
        "Gemma 2, soft caps, query scale, norms behind attention and feed-forward, window in every other layer",
        {
            "attention cap": {"attn_logit_softcapping": None},
            "logit cap": {"final_logit_softcapping": None},
            "query scale": {"query_pre_attn_scalar": 16},
            "local layers": {"layer_types": ["full_attention"] * 2},
            "global layers": {"layer_types": ["sliding_attention"] * 2},
            "post norms": without("post_attention_layernorm"),
        },
    ),
    "gemma3_text": Spec(
        GEMMA3,
        "Gemma 3, norm of queries and keys, two rotary bases, linear scaling and every third layer global",
        {
            "qk norm": without("_norm"),
            "query scale": {"query_pre_attn_scalar": 16},
            "rope scaling": {"rope_scaling": None},
            "local base": {"rope_local_base_freq": 1000000},
            "window": {"sliding_window": 256},
            "global layers": {"layer_types": ["sliding_attention"] * 3},
        },
    ),
    "phi3": Spec(
        PHI3,
        "Phi-3, fused qkv and gate-up projections, sliding window of 8",
        {"window": {"sliding_window": None}},
    ),
    "phi3_longrope": Spec(
        {
            **PHI3,
            **WIDE_HEADS,
            "original_max_position_embeddings": 16,
            "partial_rotary_factor": 0.75,
            "rope_scaling": LONGROPE,
            "sliding_window": 256,
        },
        "Phi-3.5 and Phi-4-mini, longrope over three quarters of a head, 16 positions originally",
        {
            "long factors": {"rope_scaling": {**LONGROPE, "long_factor": LONGROPE["short_factor"]}},
            "attention factor": {"max_position_embeddings": 16},
        },
    ),
    "olmo2": Spec(
        OLMO2,
        "OLMo 2, norms behind attention and feed-forward block only, norm over all queries and all keys",
        {"qk norm": without("_norm"), "post norms": without("post_attention_layernorm")},
    ),
    "roberta": Spec(
        ROBERTA,
        "RoBERTa, positions from 2, prefix roberta. and a language-model head on the checkpoint",
        {"position offset": positions_from_zero},
    ),
    "xlm_roberta": Spec(
        XLM_ROBERTA,
        "XLM-RoBERTa, positions from 2, no prefix, in f16",
        {"position offset": positions_from_zero},
        rename=with_position_ids,
    ),
    "modernbert": Spec(
        MODERNBERT,
        "ModernBERT, window of 6 to either side in every other layer, two rotary bases, gated GELU",
        {
            "window": {"local_attention": 256},
            "global layers": {"global_attn_every_n_layers": 100},
            "local base": {"local_rope_theta": 160000.0},
            "global base": {"global_rope_theta": 10000.0},
        },
    ),
    "llama": Spec(
        {**LLAMA, "attention_bias": True, "mlp_bias": True},
        "Llama, biases everywhere, untied head, two shards",
        {"attention bias": {"attention_bias": False}, "mlp bias": {"mlp_bias": False}},
        shards=2,
    ),
    "llama_linear": Spec(
        {**LLAMA, **WIDE_HEADS, "rope_scaling": {"factor": 2.0, "type": "linear"}},
        "Llama, rope_scaling linear",
        {"scaling": {"rope_scaling": None}},
        long=48,
        points=ACTIVATIONS,
    ),
    "llama_dynamic": Spec(
        {
            **LLAMA,
            **WIDE_HEADS,
            "max_position_embeddings": 24,
            "rope_scaling": {"factor": 4.0, "rope_type": "dynamic"},
        },
        "Llama, rope_scaling dynamic, 24 positions originally",
        {"scaling": {"rope_scaling": None}},
        long=48,
        points=ACTIVATIONS,
        cache=False,
    ),
    "llama_yarn": Spec(
        {
            **LLAMA,
            **WIDE_HEADS,
            "max_position_embeddings": 128,
            "rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 32, "rope_type": "yarn"},
        },
        "Llama, rope_scaling yarn, 32 positions originally",
        {
            "scaling": {"rope_scaling": None},
            "attention factor": {
                "rope_scaling": {
                    "attention_factor": 1.0,
                    "factor": 4.0,
                    "original_max_position_embeddings": 32,
                    "rope_type": "yarn",
                }
            },
        },
        long=48,
        points=ACTIVATIONS,
    ),
    "olmo": Spec(
        OLMO,
        "OLMo, layer norms without weights, queries, keys and values clipped",
        {"clipping": {"clip_qkv": None}},
    ),
    "granite": Spec(
        GRANITE,
        "Granite, multipliers of embeddings, attention, residuals and logits",
        {
            "embedding multiplier": {"embedding_multiplier": 1.0},
            "attention multiplier": {"attention_multiplier": 8**-0.5},
            "residual multiplier": {"residual_multiplier": 1.0},
            "logits scaling": {"logits_scaling": 1.0},
        },
    ),
    "starcoder2": Spec(
        STARCODER2,
        "StarCoder2, layer norms with bias, biases everywhere, ungated tanh GELU, sliding window of 8",
        {"window": {"sliding_window": None}, "biases": zeroed("_proj.bias")},
    ),
    "mixtral": Spec(
        MIXTRAL,
        "Mixtral, two of four experts",
        {"second expert": {"num_experts_per_tok": 1}},
    ),
    "qwen2_moe": Spec(
        QWEN2_MOE,
        "Qwen2-MoE, two of four experts whose weights do not add up to one, and a gated shared expert",
        {
            "weights as they are": {"norm_topk_prob": True},
            "shared expert": zeroed("shared_expert.down_proj.weight"),
        },
    ),
    "qwen3_moe": Spec(
        QWEN3_MOE,
        "Qwen3-MoE, two of four experts, norm of each query and key head",
        {"weights add up": {"norm_topk_prob": False}, "qk norm": without("_norm")},
    ),
}
