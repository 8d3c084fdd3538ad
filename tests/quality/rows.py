"""Rows to train on and rows to judge by.

    python rows.py STORE planted ROWS HELD [DEVICE]
    python rows.py STORE held CAPTURE OTHER_CAPTURE HELD

`planted` writes a capture of rows whose features are known. `held` puts the first HELD rows of
OTHER_CAPTURE beside CAPTURE's shards, both made by `01_save_activations`, of different documents.
Either way they are CAPTURE/held.npy, and in none of its shards.
"""
import json
import sys
from pathlib import Path

import numpy as np
import torch
from blake3 import blake3
from safetensors import safe_open

FEATURES, D_IN, ACTIVE = 4096, 256, 16
PAGE = 4096
DOCUMENT = 64
HOOK = "model.layers.0"
DIRECTORY = "planted_model_layers_0"


def dictionary() -> torch.Tensor:
    """[FEATURES, D_IN], rows of norm 1 in random directions."""
    rows = torch.randn(FEATURES, D_IN, generator=torch.Generator().manual_seed(1))
    return rows / rows.norm(dim=1, keepdim=True)


def planted_rows(n: int, device: str) -> np.ndarray:
    """f16 [n, D_IN]: ACTIVE different features each, with sizes 0.5 to 1.5, and a little noise.

    A feature's frequency falls as (rank + 10)^-1/2, as real features' frequencies fall.
    """
    gen = torch.Generator(device).manual_seed(2)
    basis = dictionary().to(device)
    logits = -0.5 * torch.arange(10, FEATURES + 10, device=device).float().log()
    out = np.empty((n, D_IN), np.float16)
    for start in range(0, n, 8192):
        m = min(8192, n - start)
        # Gumbel noise turns the largest k into a draw of k without replacement.
        uniform = torch.rand(m, FEATURES, device=device, generator=gen).clamp_min(1e-20)
        picks = (logits - (-uniform.log()).log()).topk(ACTIVE).indices
        sizes = 0.5 + torch.rand(m, ACTIVE, device=device, generator=gen)
        rows = torch.nn.functional.embedding_bag(picks, basis, per_sample_weights=sizes, mode="sum")
        rows += 0.02 * torch.randn(m, D_IN, device=device, generator=gen)
        out[start : start + m] = rows.half().cpu().numpy()
    return out


def write_tensors(path: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> dict:
    """A safetensors file whose payload begins on a page; its entry of the manifest."""
    names = {"float16": "F16", "float64": "F64", "uint64": "U64", "uint32": "U32", "uint8": "U8"}
    header, offset = {"__metadata__": metadata}, 0
    for name, values in tensors.items():
        end = offset + values.nbytes
        header[name] = {
            "dtype": names[values.dtype.name], "shape": values.shape, "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % PAGE)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for values in tensors.values():
            file.write(np.ascontiguousarray(values).tobytes())
    data = path.read_bytes()
    return {
        "path": f"{path.parent.name}/{path.name}", "bytes": len(data),
        "blake3": blake3(data).hexdigest(),
    }


def planted(run: Path, n: int, held: int, device: str) -> None:
    """A capture of `n` planted rows, in documents of DOCUMENT rows, and `held` more to judge by."""
    rows = planted_rows(n + held, device)
    run.mkdir(parents=True)
    np.save(run / "held.npy", rows[n:])
    rows = rows[:n]
    documents = n // DOCUMENT
    wide = rows.astype(np.float64)
    squares = (wide**2).sum(1)
    metadata = {"model": "planted", "revision": "local", "tokenizer_blake3": "0" * 64, "run": run.name}
    activations = write_tensors(
        run / DIRECTORY / "shard-0-0.safetensors",
        {"activations": rows, "sum": wide.sum(0)},
        metadata | {"hook": HOOK, "scale": "1"},
    )
    starts = np.arange(documents + 1, dtype=np.uint64)
    tokens = write_tensors(
        run / "tokens" / "shard-0-0.safetensors",
        {
            "sentence_start": starts * DOCUMENT, "document": starts[:-1], "text_start": starts,
            "token_id": np.zeros(n, np.uint32),
            "position": np.tile(np.arange(DOCUMENT, dtype=np.uint32), documents),
            "offset": np.zeros((n, 2), np.uint32), "text": np.full(documents, ord("."), np.uint8),
        },
        metadata,
    )
    stats = {
        "rows": n, "sum_norm": np.sqrt(squares).sum(), "sum_square": squares.sum(),
        "max_abs": float(np.abs(rows).max()),
    }
    counts = {"sentences": documents, "rows": n, "tokens_seen": n}
    line = counts | {
        "worker": 0, "shard": 0, "first_document": 0, "end_document": documents, "tokens": tokens,
        "hooks": [{"hook": HOOK, "file": activations, "stats": stats}],
    }
    (run / "manifest.jsonl").write_text(json.dumps(line) + "\n")
    meta = {
        "schema": 1, "run_id": run.name,
        "model": {
            "id": "planted", "revision": "local", "architecture": "LlamaForCausalLM",
            "tokenizer": "0" * 64,
        },
        "hooks": [
            {
                "name": HOOK, "transformer_lens": "blocks.0.hook_resid_post", "alias": "resid_post",
                "directory": DIRECTORY, "d_in": D_IN,
                "statistics": {
                    "mean_norm": stats["sum_norm"] / n, "rms_norm": (stats["sum_square"] / n) ** 0.5,
                    "max_abs": stats["max_abs"],
                },
            }
        ],
        "dataset": {"source": "planted", "documents": documents, "fingerprint": "0" * 64},
        "workers": 1, "activation_scale": 1.0,
        "policy": {
            "special_tokens": "dropped", "bos": "dropped", "first_positions_dropped": 0,
            "max_length": DOCUMENT, "f16_overflow": "error", "activation_scale": 1.0,
        },
        "config": {},
        "totals": {"shards": 1} | counts | {"dropped": {"special": 0, "first": 0, "norm": 0}},
    }
    (run / "meta.json").write_text(json.dumps(meta, indent=2))


def capture_rows(run: Path) -> np.ndarray:
    """f16 [rows, d_in] of a capture's only hook, all shards."""
    parts = []
    for line in (run / "manifest.jsonl").read_text().splitlines():
        path = run / json.loads(line)["hooks"][0]["file"]["path"]
        with safe_open(path, "np") as file:
            parts.append(file.get_tensor("activations"))
    return np.concatenate(parts)


def main() -> None:
    store, command, *rest = sys.argv[1:]
    runs = Path(store) / "runs"
    if command == "planted":
        rows, held, *device = rest
        planted(runs / "planted", int(rows), int(held), *(device or ["cpu"]))
    else:
        capture, other, held = rest
        np.save(runs / capture / "held.npy", capture_rows(runs / other)[: int(held)])


if __name__ == "__main__":
    main()
