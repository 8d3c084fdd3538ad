"""Other forms of checkpoints that a golden belongs to: the same weights, bit for bit, in other files."""
from pathlib import Path
from typing import Callable

import torch

from files import save_file
from make_tiny_models import split, write_config

Tensors = dict[str, torch.Tensor]


def cast(state: Tensors, dtype: torch.dtype) -> Tensors:
    return {k: v.to(dtype) for k, v in state.items()}


def renamed(state: Tensors, old: str, new: str) -> Tensors:
    return {new + k.removeprefix(old): v for k, v in state.items()}


def half_precision(state: Tensors, config: dict, out: Path) -> None:
    write_config({**config, "torch_dtype": "float16"}, out)
    save_file(cast(state, torch.float16), out / "model.safetensors", {"format": "pt"})


def pickled(state: Tensors, config: dict, out: Path) -> None:
    """f32 in pytorch_model.bin. The norms are views of one storage, at their offsets, and projections of
    queries are stored by columns, as what trainers save may be."""
    write_config({**config, "torch_dtype": "float32"}, out)
    state = cast(state, torch.float32)
    norms = [k for k in state if "norm" in k]
    storage = torch.cat([state[k] for k in norms])
    views = dict(zip(norms, storage.split([state[k].numel() for k in norms])))
    columns = {k: v.t().contiguous().t() for k, v in state.items() if k.endswith("q_proj.weight")}
    torch.save({**state, **views, **columns}, out / "pytorch_model.bin")


def pickled_shards(state: Tensors, config: dict, out: Path) -> None:
    write_config(config, out)
    name, index = "pytorch_model-{:05d}-of-{:05d}.bin", out / "pytorch_model.bin.index.json"
    for file, part in split(state, 2, name, index):
        torch.save(part, out / file)


def base_model(state: Tensors, config: dict, out: Path) -> None:
    """The class without a head, whose tensors have no prefix."""
    write_config({**config, "architectures": ["LlamaModel"]}, out)
    body = {k: v for k, v in state.items() if not k.startswith("lm_head")}
    save_file(renamed(body, "model.", ""), out / "model.safetensors", {"format": "pt"})


def bare_gpt2(state: Tensors, config: dict, out: Path) -> None:
    """As the first GPT-2 repositories: no prefix, and the causal mask beside the weights."""
    write_config(config, out)
    mask = torch.ones(8, 8).tril().view(1, 1, 8, 8)
    masks = {f"h.{i}.attn.bias": mask.clone() for i in range(config["n_layer"])}
    bare = renamed(state, "transformer.", "")
    save_file({**bare, **masks}, out / "model.safetensors", {"format": "pt"})


def multimodal(state: Tensors, config: dict, out: Path) -> None:
    """As Gemma 3 of 4b and more: the text model's configuration and tensors within a larger one's, without
    the keys that have their usual values."""
    usual = (
        "architectures", "attention_bias", "attention_dropout", "attn_logit_softcapping", "bos_token_id",
        "cache_implementation", "eos_token_id", "final_logit_softcapping", "hidden_activation", "pad_token_id",
        "rms_norm_eps", "rope_local_base_freq", "rope_theta", "torch_dtype", "use_cache",
    )  # fmt: skip
    text = {k: v for k, v in config.items() if k not in usual}
    vision = {
        "hidden_size": 8,
        "image_size": 16,
        "intermediate_size": 16,
        "model_type": "siglip_vision_model",
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "patch_size": 4,
        "vision_use_head": False,
    }
    whole = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "eos_token_id": [1, 2],
        "image_token_index": 79,
        "mm_tokens_per_image": 4,
        "model_type": "gemma3",
        "text_config": text,
        "torch_dtype": config["torch_dtype"],
        "vision_config": vision,
    }
    write_config(whole, out)
    others = {
        "multi_modal_projector.mm_input_projection_weight": torch.ones(8, 32).bfloat16(),
        "vision_tower.vision_model.post_layernorm.weight": torch.ones(8).bfloat16(),
    }
    text_model = renamed(state, "", "language_model.")
    save_file({**text_model, **others}, out / "model.safetensors", {"format": "pt"})


FORMS: dict[str, dict[str, Callable[[Tensors, dict, Path], None]]] = {
    "llama": {
        "model_f16": half_precision,
        "model_bin": pickled,
        "model_bin_shards": pickled_shards,
        "model_base": base_model,
    },
    "gpt2": {"model_bare": bare_gpt2},
    "gemma3_text": {"model_multimodal": multimodal},
}
