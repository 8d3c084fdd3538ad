"""Train the demo's tokenizer and Llama on the demo text, and store them in Hugging Face layout.

    pip install -r requirements.txt
    python train_model.py [--text ../text/demo.jsonl] [--out ../model] [--threads 1]

Every fiftieth document is held out; its loss is printed with the training loss, in nats a token.
"""
import argparse
import json
import math
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM

HERE = Path(__file__).parent
BOS, EOS, PAD = SPECIALS = ["<|bos|>", "<|eos|>", "<|pad|>"]
# Llama 3's split into words, numbers of up to three digits, punctuation and space.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train_tokenizer(texts, vocabulary):
    tok = Tokenizer(models.BPE(ignore_merges=True))
    tok.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tok.decoder = decoders.ByteLevel()
    # The specials come last, as in Llama 3: ids 0..255 are bytes.
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(SPECIALS), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tok.train_from_iterator(texts, trainer)
    tok.add_special_tokens(SPECIALS)
    tok.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(
            single=f"{BOS} $A", pair=f"{BOS} $A {BOS}:1 $B:1", special_tokens=[(BOS, tok.token_to_id(BOS))]
        ),
    ])
    return tok


def model_config(args, tok):
    return LlamaConfig(
        vocab_size=tok.get_vocab_size(), hidden_size=args.hidden, intermediate_size=3 * args.hidden,
        num_hidden_layers=args.layers, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
        rms_norm_eps=1e-5, tie_word_embeddings=True, initializer_range=0.05,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        bos_token_id=tok.token_to_id(BOS), eos_token_id=tok.token_to_id(EOS), pad_token_id=tok.token_to_id(PAD),
    )


def batches(rows, size, rng):
    """Batches of documents of like length, in random order."""
    order = sorted(range(len(rows)), key=lambda i: (len(rows[i]), rng.random()))
    groups = [order[i : i + size] for i in range(0, len(order), size)]
    rng.shuffle(groups)
    return [[rows[i] for i in g] for g in groups]


def loss_of(model, rows, pad):
    width = max(map(len, rows))
    ids = torch.tensor([r + [pad] * (width - len(r)) for r in rows])
    # Padding is at the end: a causal model needs no mask for it, only the loss leaves it out.
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), ignore_index=pad)


@torch.inference_mode()
def held_out_loss(model, rows, pad):
    model.eval()
    total = tokens = 0
    for start in range(0, len(rows), 50):
        part = rows[start : start + 50]
        count = sum(len(r) - 1 for r in part)
        total += loss_of(model, part, pad).item() * count
        tokens += count
    model.train()
    return total / tokens


def train(model, rows, held, args, pad):
    decay = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() == 1]
    opt = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}], lr=args.lr, betas=(0.9, 0.98),
        fused=True,
    )
    rng, step, began, smooth = random.Random(args.seed), 0, time.time(), None
    total = args.epochs * math.ceil(len(rows) / args.batch)
    for epoch in range(args.epochs):
        for part in batches(rows, args.batch, rng):
            lr = args.lr * min(1, (step + 1) / 200) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / total)))
            for group in opt.param_groups:
                group["lr"] = lr
            loss = loss_of(model, part, pad)
            opt.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            opt.step()
            step += 1
            if step % 500 == 0:
                print(f"step {step} of {total}: train {smooth:.3f} nats/token, {time.time() - began:.0f} s", flush=True)
            smooth = loss.item() if smooth is None else 0.98 * smooth + 0.02 * loss.item()
        print(f"epoch {epoch + 1} step {step} train {smooth:.3f} held-out {held_out_loss(model, held, pad):.3f} "
              f"nats/token {time.time() - began:.0f} s", flush=True)


# The layout of a published Llama, which is not quite what this version of transformers writes.
def published_config(config):
    kept = (
        "attention_bias attention_dropout bos_token_id eos_token_id head_dim hidden_act hidden_size initializer_range "
        "intermediate_size max_position_embeddings mlp_bias model_type num_attention_heads num_hidden_layers "
        "num_key_value_heads pad_token_id pretraining_tp rms_norm_eps tie_word_embeddings use_cache vocab_size"
    ).split()
    have = config.to_dict()
    return {
        "architectures": ["LlamaForCausalLM"], **{k: have[k] for k in kept}, "torch_dtype": "bfloat16",
        "rope_theta": have["rope_parameters"]["rope_theta"], "rope_scaling": None,
    }


def save(out, model, tok):
    out.mkdir(parents=True, exist_ok=True)
    weights = {
        k: v.detach().to(torch.bfloat16).contiguous() for k, v in sorted(model.state_dict().items()) if k != "lm_head.weight"
    }
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(published_config(model.config), indent=2) + "\n")
    tok.save(str(out / "tokenizer.json"), pretty=False)
    (out / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BOS, "eos_token": EOS, "pad_token": PAD,
        "model_max_length": model.config.max_position_embeddings, "clean_up_tokenization_spaces": False,
    }, indent=2) + "\n")


@torch.inference_mode()
def samples(model, tok, prompts):
    model.eval()
    for prompt in prompts:
        ids = torch.tensor([tok.encode(prompt).ids])
        for _ in range(24):
            following = model(input_ids=ids).logits[0, -1].argmax()
            ids = torch.cat([ids, following.view(1, 1)], 1)
            if following == model.config.eos_token_id:
                break
        print("  " + tok.decode(ids[0].tolist()))


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    ap.add_argument("--text", type=Path, default=HERE.parent / "text" / "demo.jsonl")
    ap.add_argument("--out", type=Path, default=HERE.parent / "model")
    ap.add_argument("--vocabulary", type=int, default=3072)
    ap.add_argument("--hidden", type=int, default=128)
    ap.add_argument("--layers", type=int, default=4)
    ap.add_argument("--epochs", type=int, default=6)
    ap.add_argument("--batch", type=int, default=32)
    ap.add_argument("--lr", type=float, default=2e-3)
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--threads", type=int, default=1)
    args = ap.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    texts = [json.loads(line)["text"] for line in args.text.read_text(encoding="utf-8").splitlines()]
    tok = train_tokenizer(texts, args.vocabulary)
    eos, pad = tok.token_to_id(EOS), tok.token_to_id(PAD)
    rows = [e.ids + [eos] for e in tok.encode_batch(texts)]
    held, rows = rows[::50], [r for i, r in enumerate(rows) if i % 50]
    model = LlamaForCausalLM(model_config(args, tok))
    print(f"{sum(map(len, rows))} training tokens, {sum(p.numel() for p in model.parameters())} parameters", flush=True)
    train(model, rows, held, args, pad)
    save(args.out, model, tok)
    samples(model, tok, ["The chef", "On Tuesday the goalkeeper", '"The train', "In the garden", "The surgeon operated", "How many"])


if __name__ == "__main__":
    main()
