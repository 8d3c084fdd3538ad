"""The hook points of each family, under the module paths of `transformers`.

A path stands for a module's output, `path#in` for its input, and {} for the layer. Points that a
family lacks are absent: a parallel block has no ResidMid, a mixture of experts no MlpAct.
"""
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Family:
    points: dict[str, str]
    # Sums of the residual stream that are carried on behind the norm that reads them: the path of
    # the norm's input, and the module whose output is the sum's last term.
    sums: dict[str, str] = field(default_factory=dict)
    # Key of the configuration that multiplies what is added to the residual stream.
    multiplier: str | None = None

    def paths(self, layers: int, points: tuple[str, ...] | None = None) -> list[str]:
        """The paths of all layers, in the order of computation within a layer."""
        picked = [p for name, p in self.points.items() if points is None or name in points]
        return [p.format(i) for p in picked for i in (range(layers) if "{}" in p else [0])]


def decoder(base: str, block: str, outside: dict[str, str], inside: dict[str, str]) -> dict[str, str]:
    """Points of a decoder whose blocks are `base.block`; the head sits beside the base."""
    named = {k: f"{base}.{v}" for k, v in outside.items()}
    blocks = {k: f"{base}.{block}.{{}}{v}" for k, v in inside.items()}
    return {**named, **blocks, "Logits": "lm_head"}


GATED_MLP = {
    "MlpGate": ".mlp.act_fn",
    "MlpAct": ".mlp.down_proj#in",
    "MlpOut": ".mlp",
}
LLAMA_OUTSIDE = {"Embed": "embed_tokens", "FinalNorm": "norm"}
LLAMA_BLOCK = {
    "ResidPre": "#in",
    "AttnIn": ".input_layernorm",
    "Z": ".self_attn.o_proj#in",
    "AttnOut": ".self_attn",
    "ResidMid": ".post_attention_layernorm#in",
    "MlpIn": ".post_attention_layernorm",
    **GATED_MLP,
    "ResidPost": "",
}
LLAMA = decoder("model", "layers", LLAMA_OUTSIDE, LLAMA_BLOCK)
LLAMA_SUMS = {LLAMA["ResidMid"]: LLAMA["AttnOut"]}
PLAIN_LLAMA = Family(LLAMA, LLAMA_SUMS)

# What attention and feed-forward block add is normalised first. RawAttnOut and RawMlpOut are the
# tensors before that norm.
GEMMA2_BLOCK = {
    **LLAMA_BLOCK,
    "RawAttnOut": ".self_attn",
    "AttnOut": ".post_attention_layernorm",
    "ResidMid": ".pre_feedforward_layernorm#in",
    "MlpIn": ".pre_feedforward_layernorm",
    "RawMlpOut": ".mlp",
    "MlpOut": ".post_feedforward_layernorm",
}
GEMMA2 = decoder("model", "layers", LLAMA_OUTSIDE, GEMMA2_BLOCK)
GEMMA2_SUMS = {GEMMA2["ResidMid"]: GEMMA2["AttnOut"]}

# OLMo 2 has no norm before attention and feed-forward block: both read the residual stream.
OLMO2_BLOCK = {k: v for k, v in GEMMA2_BLOCK.items() if k not in ("AttnIn", "MlpIn")}
OLMO2 = decoder("model", "layers", LLAMA_OUTSIDE, {**OLMO2_BLOCK, "ResidMid": ".mlp#in"})

PHI3 = {**LLAMA, "MlpGate": "model.layers.{}.mlp.activation_fn"}

# The residual multiplier is applied to the outputs of self_attn and mlp where they are added, and
# the embedding multiplier behind embed_tokens: Embed is what enters the first block.
GRANITE = {**LLAMA, "TokenEmbed": "model.embed_tokens", "Embed": "model.layers.0#in", "Logits": "logits"}

GPT2 = decoder(
    "transformer",
    "h",
    {"TokenEmbed": "wte", "PositionEmbed": "wpe", "Embed": "drop", "FinalNorm": "ln_f"},
    {
        "ResidPre": "#in",
        "AttnIn": ".ln_1",
        "Z": ".attn.c_proj#in",
        "AttnOut": ".attn",
        "ResidMid": ".ln_2#in",
        "MlpIn": ".ln_2",
        "MlpAct": ".mlp.act",
        "MlpOut": ".mlp",
        "ResidPost": "",
    },
)
NEOX = decoder(
    "gpt_neox",
    "layers",
    {"Embed": "embed_in", "FinalNorm": "final_layer_norm"},
    {
        "ResidPre": "#in",
        "AttnIn": ".input_layernorm",
        "Z": ".attention.dense#in",
        "AttnOut": ".attention",
        "MlpIn": ".post_attention_layernorm",
        "MlpAct": ".mlp.act",
        "MlpOut": ".mlp",
        "ResidPost": "",
    },
)
NEOX_SEQUENTIAL = {**NEOX, "ResidMid": "gpt_neox.layers.{}.post_attention_layernorm#in"}

PLAIN_MLP = {"MlpAct": "model.layers.{}.mlp.act"}
STARCODER2 = {**{k: v for k, v in LLAMA.items() if k != "MlpGate"}, **PLAIN_MLP}
EXPERTS = {k: v for k, v in LLAMA.items() if k not in ("MlpGate", "MlpAct")}

BERT = {
    "WordEmbed": "embeddings.word_embeddings",
    "TokenTypeEmbed": "embeddings.token_type_embeddings",
    "PositionEmbed": "embeddings.position_embeddings",
    "EmbedSum": "embeddings.LayerNorm#in",
    "Embed": "embeddings",
    "ResidPre": "encoder.layer.{}#in",
    "Z": "encoder.layer.{}.attention.self",
    "AttnOut": "encoder.layer.{}.attention.output.dense",
    "ResidMid": "encoder.layer.{}.attention.output.LayerNorm#in",
    "MlpIn": "encoder.layer.{}.attention.output",
    "MlpAct": "encoder.layer.{}.intermediate",
    "MlpOut": "encoder.layer.{}.output.dense",
    "ResidSum": "encoder.layer.{}.output.LayerNorm#in",
    "ResidPost": "encoder.layer.{}",
}
# The first block has no norm before its attention; its attn_norm hands its input on.
MODERNBERT = {
    "WordEmbed": "embeddings.tok_embeddings",
    "Embed": "embeddings",
    "ResidPre": "layers.{}#in",
    "AttnIn": "layers.{}.attn_norm",
    "Z": "layers.{}.attn.Wo#in",
    "AttnOut": "layers.{}.attn",
    "ResidMid": "layers.{}.mlp_norm#in",
    "MlpIn": "layers.{}.mlp_norm",
    "MlpGate": "layers.{}.mlp.act",
    "MlpAct": "layers.{}.mlp.Wo#in",
    "MlpOut": "layers.{}.mlp",
    "ResidPost": "layers.{}",
    "FinalNorm": "final_norm",
}

FAMILIES = {
    "llama": PLAIN_LLAMA,
    "qwen2": PLAIN_LLAMA,
    "mistral": PLAIN_LLAMA,
    "qwen3": PLAIN_LLAMA,
    "gemma": PLAIN_LLAMA,
    "olmo": PLAIN_LLAMA,
    "gemma2": Family({**GEMMA2, "Logits": "logits"}, GEMMA2_SUMS),
    "gemma3_text": Family(GEMMA2, GEMMA2_SUMS),
    "olmo2": Family(OLMO2, {OLMO2["ResidMid"]: OLMO2["AttnOut"]}),
    "phi3": Family(PHI3, LLAMA_SUMS),
    "granite": Family(GRANITE, LLAMA_SUMS, multiplier="residual_multiplier"),
    "gpt2": Family(GPT2, {GPT2["ResidMid"]: GPT2["AttnOut"]}),
    "gpt_neox": Family(NEOX),
    "gpt_neox_sequential": Family(NEOX_SEQUENTIAL, {NEOX_SEQUENTIAL["ResidMid"]: NEOX["AttnOut"]}),
    "starcoder2": Family(STARCODER2, LLAMA_SUMS),
    "mixtral": Family(EXPERTS, LLAMA_SUMS),
    "qwen2_moe": Family(EXPERTS, LLAMA_SUMS),
    "qwen3_moe": Family(EXPERTS, LLAMA_SUMS),
    "bert": Family(BERT),
    "roberta": Family(BERT),
    "xlm-roberta": Family(BERT),
    "modernbert": Family(MODERNBERT, {MODERNBERT["ResidMid"]: MODERNBERT["AttnOut"]}),
}
ENCODERS = ("bert", "roberta", "xlm-roberta", "modernbert")


def family(config) -> Family:
    sequential = config.model_type == "gpt_neox" and not config.use_parallel_residual
    return FAMILIES[config.model_type + ("_sequential" if sequential else "")]
