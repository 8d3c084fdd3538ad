"""Record what `transformers` generates: the most likely token, 64 times over, with a key-value cache."""
import json
from pathlib import Path

import torch

from golden import FIRST_ID, load

PROMPT, TOKENS = 8, 64
# Runner-up and winner must lie apart by more than rounding moves them, relative to the logits' rms.
MARGIN = 5e-3
# Fewer different tokens than that say little about the cache.
DISTINCT = 12
ATTEMPTS = 200


@torch.no_grad()
def stateless(model_dir: Path, prompt: list[int]) -> tuple[list[int], float]:
    """Tokens up to the first near tie, when every step is a forward over the whole sentence, and the
    smallest margin."""
    model, ids, margin = load(model_dir), list(prompt), float("inf")
    for _ in range(TOKENS):
        logits = model(torch.tensor([ids]), use_cache=False).logits[0, -1]
        top = logits.topk(2)
        margin = min(margin, ((top.values[0] - top.values[1]) / logits.pow(2).mean().sqrt()).item())
        ids.append(top.indices[0].item())
        if margin < MARGIN:
            break
    return ids[len(prompt) :], margin


@torch.no_grad()
def cached(model_dir: Path, prompt: list[int]) -> list[int]:
    ids = torch.tensor([prompt])
    out = load(model_dir).generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=TOKENS, min_new_tokens=TOKENS,
        do_sample=False, use_cache=True, eos_token_id=None, pad_token_id=0,
    )
    return out[0, len(prompt) :].tolist()


def greedy(model_dir: Path, out: Path, seed: int, cache: bool) -> dict:
    """Writes greedy.json for the first prompt whose tokens vary and are never nearly tied."""
    gen = torch.Generator().manual_seed(seed)
    vocab = load(model_dir).config.vocab_size
    for attempt in range(ATTEMPTS):
        prompt = torch.randint(FIRST_ID, vocab, (PROMPT,), generator=gen).tolist()
        tokens, margin = stateless(model_dir, prompt)
        if margin > MARGIN and len(set(tokens)) >= DISTINCT:
            break
    else:
        raise SystemExit(f"{out.name}: every prompt ends in a tie or a short loop")
    same = cached(model_dir, prompt) == tokens
    assert same == cache, f"{out.name}: with a cache the tokens are {'the same' if same else 'others'}"
    row = {"prompt": prompt, "tokens": tokens, "margin": float(f"{margin:.1e}"), "use_cache": cache}
    (out / "greedy.json").write_text(json.dumps(row) + "\n")
    return {"attempt": attempt, "distinct": len(set(tokens)), "margin": row["margin"]}
