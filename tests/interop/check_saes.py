"""Do the projects read SAEs that this one saved in their formats, and compute the same numbers?

    check_saes.py TOLERANCE DIR...

Each DIR is a directory of SAELens, sparsify or dictionary_learning with a file check.safetensors
beside the weights: x [n, d_in], latents [n, d_sae] = our encode(x), reconstruction [n, d_in] = ours.
Prints one JSON line per DIR; the exit status is 1 if a difference exceeds TOLERANCE.
"""

import json
import os
import sys
from pathlib import Path

# Its kernels need a GPU.
os.environ["SPARSIFY_DISABLE_TRITON"] = "1"

import torch
from dictionary_learning.utils import load_dictionary
from safetensors.torch import load_file
from sae_lens import SAE
from sparsify import SparseCoder


def sparsify(folder: Path, x: torch.Tensor):
    sae = SparseCoder.load_from_disk(folder)
    found = sae.encode(x)
    latents = torch.zeros(len(x), sae.num_latents).scatter_(1, found.top_indices, found.top_acts)
    return "sparsify " + sae.cfg.activation, latents, sae.decode(found.top_acts, found.top_indices)


def dictionary_learning(folder: Path, x: torch.Tensor):
    ae, _ = load_dictionary(str(folder), "cpu")
    latents = ae.encode(x)
    return type(ae).__name__, latents, ae.decode(latents)


def saelens(folder: Path, x: torch.Tensor):
    sae = SAE.load_from_disk(folder, device="cpu")
    latents = sae.encode(x)
    return sae.cfg.architecture(), latents, sae.decode(latents)


@torch.no_grad()
def compare(folder: Path) -> dict:
    ours = load_file(folder / "check.safetensors")
    if (folder / "ae.pt").exists():
        load = dictionary_learning
    elif (folder / "sae.safetensors").exists():
        load = sparsify
    else:
        load = saelens
    architecture, latents, reconstruction = load(folder, ours["x"])
    return {
        "dir": folder.name,
        "architecture": architecture,
        "encode": (latents - ours["latents"]).abs().max().item(),
        "decode": (reconstruction - ours["reconstruction"]).abs().max().item(),
        "active": int((latents != 0).sum()),
        "active_differs": int(((latents != 0) != (ours["latents"] != 0)).sum()),
    }


def main() -> None:
    tolerance = float(sys.argv[1])
    good = True
    for folder in sys.argv[2:]:
        row = compare(Path(folder))
        row["ok"] = row["active"] > 0 and max(row["encode"], row["decode"]) <= tolerance
        good &= row["ok"]
        print(json.dumps(row))
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
