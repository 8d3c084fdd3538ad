"""Does SAELens read SAEs that this project saved, and compute the same numbers from them?

    check_saelens.py TOLERANCE DIR...

Each DIR is a SAELens directory with a file check.safetensors beside the weights:
x [n, d_in], latents [n, d_sae] = our encode(x), reconstruction [n, d_in] = our decode(latents).
Prints one JSON line per DIR; the exit status is 1 if a difference exceeds TOLERANCE.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from sae_lens import SAE


@torch.no_grad()
def compare(folder: Path) -> dict:
    sae = SAE.load_from_disk(folder, device="cpu")
    ours = load_file(folder / "check.safetensors")
    latents = sae.encode(ours["x"])
    reconstruction = sae.decode(ours["latents"])
    return {
        "dir": folder.name,
        "architecture": sae.cfg.architecture(),
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
