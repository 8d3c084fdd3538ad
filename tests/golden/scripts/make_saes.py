"""Small SAEs in the formats of several projects, and what those projects compute from them.

    make_saes.py OUTPUT

Each folder of OUTPUT holds one SAE as its own project saves it and `check.safetensors`: x [n, d],
latents [n, L], reconstruction [n, d]. Needs the packages of tests/interop/requirements.txt. OpenAI's
and SAINT's projects are no packages: their files are saved from the same tensors and names, and their
results follow the formulas of their model files.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from dictionary_learning.dictionary import (
    AutoEncoder,
    AutoEncoderNew,
    GatedAutoEncoder,
    JumpReluAutoEncoder,
)
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
from dictionary_learning.trainers.top_k import AutoEncoderTopK
from sae_lens import (
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    GatedSAE,
    GatedSAEConfig,
    JumpReLUSAE,
    JumpReLUSAEConfig,
    StandardSAE,
    StandardSAEConfig,
    TopKSAE,
    TopKSAEConfig,
)
from safetensors.torch import load_file, save_file
from sparsify import SparseCoder, SparseCoderConfig

D, L, K, ROWS = 6, 10, 3, 8
OUT = Path(sys.argv[1])


def folder(name: str) -> Path:
    path = OUT / name
    path.mkdir(parents=True, exist_ok=True)
    return path


def rows(scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(ROWS, D) + 0.3


@torch.no_grad()
def lively(module: torch.nn.Module) -> None:
    """Random parameters: no bias is zero, and decoder rows do not have norm 1."""
    for name, parameter in module.named_parameters():
        value = 0.6 * torch.randn(parameter.shape)
        if name == "threshold":
            value = value.abs()
        # In place, so that strides stay those that the project chose.
        parameter.copy_(value)


def save(path: Path, x, latents, reconstruction) -> None:
    tensors = {"x": x, "latents": latents, "reconstruction": reconstruction}
    tensors = {k: v.detach().float().contiguous() for k, v in tensors.items()}
    assert (tensors["latents"] != 0).any()
    save_file(tensors, path / "check.safetensors")


@torch.no_grad()
def saelens() -> None:
    common = {"d_in": D, "d_sae": L}
    for name, cls, cfg in [
        ("standard", StandardSAE, StandardSAEConfig(**common)),
        ("topk_rescaled", TopKSAE, TopKSAEConfig(**common, k=K, rescale_acts_by_decoder_norm=True)),
        ("topk_layer_norm", TopKSAE, TopKSAEConfig(**common, k=K, normalize_activations="layer_norm")),
        ("jumprelu", JumpReLUSAE, JumpReLUSAEConfig(**common, apply_b_dec_to_input=False)),
        ("gated", GatedSAE, GatedSAEConfig(**common)),
    ]:
        sae = cls(cfg)
        lively(sae)
        path = folder(f"saelens_{name}")
        sae.save_model(path)
        x = rows()
        latents = sae.encode(x)
        save(path, x, latents, sae.decode(latents))
    # As training saves it, with one threshold for the product of activation and decoder norm.
    sae = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(**common, k=K))
    lively(sae)
    sae.topk_threshold.fill_(0.7)
    path = folder("saelens_batchtopk_training")
    sae.save_model(path)
    inference = path / "inference"
    sae.save_inference_model(inference)
    loaded = JumpReLUSAE.load_from_disk(inference)
    x = rows()
    latents = loaded.encode(x)
    save(path, x, latents, loaded.decode(latents))
    for file in inference.iterdir():
        file.unlink()
    inference.rmdir()
    legacy()


@torch.no_grad()
def legacy() -> None:
    """A flat configuration of a version before 6, and a logarithm of thresholds."""
    sae = TopKSAE(TopKSAEConfig(d_in=D, d_sae=L, k=K))
    lively(sae)
    path = folder("saelens_before_6")
    sae.save_model(path)
    weights = load_file(path / "sae_weights.safetensors")
    weights["scaling_factor"] = torch.ones(L)
    save_file(weights, path / "sae_weights.safetensors")
    cfg = {
        "d_in": D,
        "d_sae": L,
        "dtype": "torch.float32",
        "activation_fn_str": "topk",
        "activation_fn_kwargs": {"k": K},
        "hook_point": "blocks.1.hook_resid_pre",
        "hook_point_layer": 1,
        "model_name": "gpt2-small",
        "normalize_activations": False,
        "finetuning_scaling_factor": False,
    }
    (path / "cfg.json").write_text(json.dumps(cfg))
    x = rows()
    latents = sae.encode(x)
    save(path, x, latents, sae.decode(latents))


@torch.no_grad()
def sparsify() -> None:
    d_in, factor = 5, 2
    for name, options in [("topk", {}), ("skip_transcoder", {"transcode": True, "skip_connection": True})]:
        sae = SparseCoder(d_in, SparseCoderConfig(k=K, expansion_factor=factor, **options))
        lively(sae)
        path = folder(f"sparsify_{name}")
        sae.save_to_disk(path)
        x = torch.randn(ROWS, d_in)
        encoded = sae.encode(x)
        latents = torch.zeros(ROWS, d_in * factor)
        latents.scatter_(1, encoded.top_indices, encoded.top_acts)
        save(path, x, latents, sae(x).sae_out)


@torch.no_grad()
def dictionary_learning() -> None:
    for name, ae in [
        ("standard", AutoEncoder(D, L)),
        ("new", AutoEncoderNew(D, L)),
        ("topk", AutoEncoderTopK(D, L, K)),
        ("batchtopk", BatchTopKSAE(D, L, K)),
        ("matryoshka", MatryoshkaBatchTopKSAE(D, L, K, [4, 6])),
        ("jumprelu", JumpReluAutoEncoder(D, L)),
        ("gated", GatedAutoEncoder(D, L)),
    ]:
        lively(ae)
        if name in ("topk", "batchtopk", "matryoshka"):
            ae.threshold.fill_(0.4)
        path = folder(f"dictionary_learning_{name}")
        torch.save(ae.state_dict(), path / "ae.pt")
        trainer = {
            "dict_class": type(ae).__name__,
            "activation_dim": D,
            "dict_size": L,
            "k": K,
            "layer": 3,
            "lm_name": "EleutherAI/pythia-70m",
            "submodule_name": "resid_post_layer_3",
        }
        config = {"trainer": trainer, "buffer": {"d_submodule": D, "io": "out", "ctx_len": 128}}
        (path / "config.json").write_text(json.dumps(config))
        x = rows()
        latents = ae.encode(x)
        save(path, x, latents, ae.decode(latents))


def gemma_scope() -> None:
    w = {
        "W_enc": np.random.randn(D, L),
        "W_dec": np.random.randn(L, D),
        "b_enc": np.random.randn(L),
        "b_dec": np.random.randn(D),
        "threshold": np.abs(np.random.randn(L)),
    }
    w = {k: v.astype(np.float32) for k, v in w.items()}
    x = rows().numpy()
    pre = x @ w["W_enc"] + w["b_enc"]
    latents = np.maximum(pre, 0) * (pre > w["threshold"])
    reconstruction = latents @ w["W_dec"] + w["b_dec"]
    compressed = {**w, "W_enc": np.asfortranarray(w["W_enc"])}
    for name, write, arrays in [
        ("gemma_scope", np.savez, w),
        ("gemma_scope_compressed", np.savez_compressed, compressed),
    ]:
        path = folder(name)
        write(path / "params.npz", **arrays)
        save(path, *(torch.from_numpy(a) for a in (x, latents, reconstruction)))


@torch.no_grad()
def topk(x: torch.Tensor, w: dict, b_pre: str, b_enc: str, restore: float, eps: float):
    mean, std = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
    pre = ((x - mean) / (std + eps) - w[b_pre]) @ w["encoder.weight"].T + w[b_enc]
    top = pre.topk(K, dim=-1)
    latents = torch.zeros_like(pre).scatter_(-1, top.indices, top.values.relu())
    out = latents @ w["decoder.weight"].T + w[b_pre]
    return latents, out * (std + restore) + mean


def openai_and_saint() -> None:
    w = {
        "pre_bias": torch.randn(D),
        "latent_bias": 0.5 * torch.randn(L),
        "stats_last_nonzero": torch.zeros(L, dtype=torch.long),
        "latents_activation_frequency": torch.ones(L),
        "latents_mean_square": torch.zeros(L),
        "encoder.weight": torch.randn(L, D),
        # A linear layer's own layout turned round, as an initialisation by the encoder leaves it.
        "decoder.weight": torch.randn(L, D).T,
    }
    x = rows(3.0)
    state = {"k": K, "postact_fn": "ReLU"}
    path = folder("openai_topk")
    torch.save({**w, "activation": "TopK", "activation_state_dict": state}, path / "1.pt")
    save(path, x, *topk(x, w, "pre_bias", "latent_bias", 0.0, 1e-5))
    path = folder("openai_relu_half")
    half = {k: v.half() if v.is_floating_point() else v for k, v in w.items()}
    torch.save({**half, "activation": "ReLU"}, path / "1.pt")
    wide = {k: v.float() for k, v in half.items()}
    latents = ((x - wide["pre_bias"]) @ wide["encoder.weight"].T + wide["latent_bias"]).relu()
    save(path, x, latents, latents @ wide["decoder.weight"].T + wide["pre_bias"])
    saint = {
        "b_pre": w["pre_bias"],
        "encoder.weight": w["encoder.weight"],
        "encoder.bias": w["latent_bias"],
        "decoder.weight": w["decoder.weight"],
    }
    path = folder("saint")
    torch.save(saint, path / "sae.pt")
    save(path, x, *topk(x, saint, "b_pre", "encoder.bias", 1e-6, 1e-6))
    path = folder("before_1_6")
    torch.save(saint, path / "sae.pt", _use_new_zipfile_serialization=False)
    save(path, x, *topk(x, saint, "b_pre", "encoder.bias", 1e-6, 1e-6))


def main() -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    saelens()
    sparsify()
    dictionary_learning()
    gemma_scope()
    openai_and_saint()


if __name__ == "__main__":
    main()
