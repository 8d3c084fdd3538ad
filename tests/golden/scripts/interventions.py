"""Record what `transformers` computes when one tensor on the way is replaced.

    python interventions.py MODEL_DIR OUT_DIR

OUT_DIR/interventions.safetensors receives `input_ids` [1, positions] and, for each name, the last two
rows of what the model ends with (logits, or an encoder's last block) when the tensor x of that name
was replaced by x / 2 + 0.3 sin(column + 1) in all rows; `none` is the plain forward. Names are as in
golden.py: a module's output, or `path#in` its input. A name stands for the tensor, whoever reads it:
the residual stream before a norm also reaches the sum behind the next block, which a hook on the norm
alone would leave as it was, so there the block's own contribution is changed instead.
"""

import argparse
import json
from pathlib import Path

import torch
import transformers as tf
from safetensors.torch import save_file

POSITIONS, ROWS = 16, 2
DECODER = [
    "model.embed_tokens",
    "model.layers.{}#in",
    "model.layers.{}.input_layernorm",
    "model.layers.{}.self_attn.o_proj#in",
    "model.layers.{}.self_attn",
    "model.layers.{}.post_attention_layernorm#in",
    "model.layers.{}.post_attention_layernorm",
    "model.layers.{}.mlp.act_fn",
    "model.layers.{}.mlp.down_proj#in",
    "model.layers.{}.mlp",
    "model.layers.{}",
    "model.norm",
    "lm_head",
]
# Inputs of norms that are residual streams too: the module that adds the last term of the sum.
SUMS = {"model.layers.{}.post_attention_layernorm#in": "model.layers.{}.self_attn"}
BERT = [
    "embeddings.word_embeddings",
    "embeddings.token_type_embeddings",
    "embeddings.position_embeddings",
    "embeddings.LayerNorm#in",
    "embeddings",
    "encoder.layer.{}#in",
    "encoder.layer.{}.attention.self",
    "encoder.layer.{}.attention.output.dense",
    "encoder.layer.{}.attention.output.LayerNorm#in",
    "encoder.layer.{}.attention.output",
    "encoder.layer.{}.intermediate",
    "encoder.layer.{}.output.dense",
    "encoder.layer.{}.output.LayerNorm#in",
    "encoder.layer.{}",
]
NAMES = {"llama": DECODER, "qwen2": DECODER, "bert": BERT}


def changed(x: torch.Tensor) -> torch.Tensor:
    return x / 2 + 0.3 * torch.sin(torch.arange(1, x.shape[-1] + 1, dtype=x.dtype))


def first_changed(value, change):
    if isinstance(value, tuple):
        return (change(value[0]), *value[1:])
    return change(value)


def pre_hook(change):
    def hook(_, args, kwargs):
        if args:
            return first_changed(args, change), kwargs
        return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}

    return hook


def attach(model, name: str, layer: int):
    path = name.format(layer)
    if name in SUMS:
        return attach_sum(model, path.removesuffix("#in"), SUMS[name].format(layer))
    module = model.get_submodule(path.removesuffix("#in"))
    if path.endswith("#in"):
        return [module.register_forward_pre_hook(pre_hook(changed), with_kwargs=True)]
    return [module.register_forward_hook(lambda m, a, out: first_changed(out, changed))]


def attach_sum(model, norm: str, last_term: str):
    """The sum s = r + t becomes changed(s) by t becoming changed(s) - r; r is the block's input."""
    block = model.get_submodule(norm.rpartition(".")[0])
    seen = {}

    def remember(_, args, kwargs):
        seen["r"] = args[0] if args else kwargs["hidden_states"]

    def change(term):
        return changed(seen["r"] + term) - seen["r"]

    term = model.get_submodule(last_term)
    return [
        block.register_forward_pre_hook(remember, with_kwargs=True),
        term.register_forward_hook(lambda m, a, out: first_changed(out, change)),
    ]


@torch.no_grad()
def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    ap.add_argument("model_dir", type=Path)
    ap.add_argument("out", type=Path)
    args = ap.parse_args()
    config = tf.AutoConfig.from_pretrained(args.model_dir)
    kind = tf.AutoModel if config.model_type == "bert" else tf.AutoModelForCausalLM
    model = kind.from_pretrained(args.model_dir, dtype=torch.float32, attn_implementation="eager").eval()
    prompts = json.loads((args.out / "tokens.json").read_text(encoding="utf-8"))
    ids = torch.tensor([next(p["ids"] for p in prompts if p["name"] == "long")[:POSITIONS]])

    def run(handles):
        result = model(input_ids=ids, attention_mask=torch.ones_like(ids))
        for handle in handles:
            handle.remove()
        end = result.logits if "logits" in result else result.last_hidden_state
        return end[0, -ROWS:].clone()

    found = {"input_ids": ids, "none": run([])}
    for name in NAMES[config.model_type]:
        for layer in range(config.num_hidden_layers) if "{}" in name else [0]:
            path = name.format(layer)
            found[path] = run(attach(model, name, layer))
            assert not torch.equal(found[path], found["none"]), path
    save_file(found, args.out / "interventions.safetensors")
    (args.out / "interventions.safetensors").chmod(0o644)


if __name__ == "__main__":
    main()
