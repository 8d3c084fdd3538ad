"""Record what `transformers` computes when one tensor on the way is replaced.

`interventions.safetensors` receives `input_ids` [1, positions] and, for each name, the last two rows
of what the model ends with (logits, or an encoder's last hidden state) when the tensor x of that name
was replaced by x / 2 + 0.3 sin(column + 1) in all rows; `none` is the plain forward. Names are as in
hooks.py: a module's output, or `path#in` its input. A name stands for the tensor, whoever reads it:
the residual stream before a norm also reaches the sum behind the next block, which a hook on the norm
alone would leave as it was, so there the block's own contribution is changed instead.
"""

from pathlib import Path

import torch

from files import save_file
from hooks import Family, family

POSITIONS, ROWS = 16, 2


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


def attach(model, sites: Family, name: str, layer: int):
    path = name.format(layer)
    if name in sites.sums:
        factor = getattr(model.config, sites.multiplier) if sites.multiplier else 1.0
        return attach_sum(model, path, sites.sums[name].format(layer), factor)
    module = model.get_submodule(path.removesuffix("#in"))
    if path.endswith("#in"):
        return [module.register_forward_pre_hook(pre_hook(changed), with_kwargs=True)]
    return [module.register_forward_hook(lambda m, a, out: first_changed(out, changed))]


def attach_sum(model, path: str, last_term: str, factor: float):
    """The sum s = r + factor * t becomes changed(s) by a change of t; r is the block's input."""
    block = model.get_submodule(path.removesuffix("#in").rpartition(".")[0])
    seen = {}

    def remember(_, args, kwargs):
        seen["r"] = args[0] if args else kwargs["hidden_states"]

    def change(term):
        return (changed(seen["r"] + factor * term) - seen["r"]) / factor

    term = model.get_submodule(last_term)
    return [
        block.register_forward_pre_hook(remember, with_kwargs=True),
        term.register_forward_hook(lambda m, a, out: first_changed(out, change)),
    ]


@torch.no_grad()
def interventions(model, ids: torch.Tensor, out: Path) -> None:
    """`ids` [1, positions], of which the first 16 are run."""
    ids = ids[:, :POSITIONS].contiguous()
    sites = family(model.config)

    def run(handles, change=lambda end: end):
        result = model(input_ids=ids, attention_mask=torch.ones_like(ids))
        for handle in handles:
            handle.remove()
        end = result.logits if "logits" in result else result.last_hidden_state
        return change(end)[0, -ROWS:].clone()

    found = {"input_ids": ids, "none": run([])}
    for name in sites.points.values():
        for layer in range(model.config.num_hidden_layers) if "{}" in name else [0]:
            path = name.format(layer)
            if path == "logits":
                found[path] = run([], changed)
            else:
                found[path] = run(attach(model, sites, name, layer))
            assert not torch.equal(found[path], found["none"]), path
    save_file(found, out / "interventions.safetensors")
