"""Check that what a golden is there to catch moves its ends: the last block or the logits."""
import json
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file

from golden import load
from hooks import family

# Root mean square of the change, relative to that of the block's output.
LEAST = 0.1


@torch.no_grad()
def ends(model, ids: torch.Tensor) -> list[torch.Tensor]:
    """The output of the last block, and the logits of a decoder."""
    seen = []
    path = family(model.config).points["ResidPost"].format(model.config.num_hidden_layers - 1)
    handle = model.get_submodule(path).register_forward_hook(
        lambda m, a, out: seen.append(out[0] if isinstance(out, tuple) else out)
    )
    result = model(ids)
    handle.remove()
    return seen + ([result.logits] if "logits" in result else [])


def with_config(model_dir: Path, change: dict):
    """The checkpoint under another configuration."""
    with tempfile.TemporaryDirectory() as tmp:
        copy = Path(shutil.copytree(model_dir, Path(tmp) / "model"))
        config = json.loads((copy / "config.json").read_text())
        (copy / "config.json").write_text(json.dumps({**config, **change}))
        return load(copy)


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).pow(2).mean() / b.pow(2).mean()).sqrt().item()


@torch.no_grad()
def features(model_dir: Path, out: Path, table: dict) -> dict[str, float]:
    """How far the ends of `long` move without each feature; fails if they hardly do."""
    ids = load_file(out / "long.safetensors")["input_ids"]
    plain, moved = ends(load(model_dir), ids), {}
    for name, change in table.items():
        if isinstance(change, dict):
            model = with_config(model_dir, change)
        else:
            model = load(model_dir)
            change(model)
        moved[name] = max(map(distance, ends(model, ids), plain))
        assert moved[name] > LEAST, f"{out.name}: without {name} the ends move by {moved[name]:.3f}"
    return {name: round(value, 2) for name, value in moved.items()}
