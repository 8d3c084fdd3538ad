"""Quantised checkpoints of one tiny Llama, as the libraries of each format write them.

The layouts are those of AutoGPTQ's qlinear_cuda.py, AutoAWQ's gemm.py, transformers'
finegrained_fp8.py, compressed-tensors 0.20 and bitsandbytes 0.50. Each format packs a weight
[out, in] into tensors and reads it back from these alone; activations are those of the model that holds
the weights read back. Scales have four significant bits, and are powers of two beside integers of 8 bits, so
that weights are exact in f32, f16 and bf16, and no reader rounds where another does not. Those of NF4 and
LLM.int8() are right in f32 only.
"""
import json
from dataclasses import dataclass, field
from typing import Callable

import torch

AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]
E4M3_MAX = 448.0
# Values of the four-bit normal float, arXiv:2305.14314, appendix E.
NF4 = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
]  # fmt: skip
NF4_BLOCK, NESTED_BLOCK = 64, 256

Tensors = dict[str, torch.Tensor]


def coarse(x: torch.Tensor, bits: int = 4) -> torch.Tensor:
    """Up to so many significant bits."""
    mantissa, exponent = torch.frexp(x)
    return torch.ldexp(torch.ceil(mantissa * 2**bits) / 2**bits, exponent)


def pack(ints: torch.Tensor, bits: int) -> torch.Tensor:
    """Integers [.., n] of so many bits into i32 [.., n * bits / 32], the first one lowest."""
    shifts = torch.arange(0, 32, bits)
    words = (ints.long().unflatten(-1, (-1, 32 // bits)) << shifts).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).int().contiguous()


def unpack(words: torch.Tensor, bits: int) -> torch.Tensor:
    shifts = torch.arange(0, 32, bits)
    return ((words.long()[..., None] >> shifts) & (2**bits - 1)).flatten(-2)


# ------------------------------------------------------------------- GPTQ, AWQ


def affine(w: torch.Tensor, groups: torch.Tensor, bits: int, symmetric: bool):
    """Integers [out, in], scales and zeros [groups, out] of w = scale (q - zero); `groups` [in]."""
    top, scales, zeros = 2**bits - 1, [], []
    precision = 4 if bits == 4 else 1
    for g in range(int(groups.max()) + 1):
        part = w[:, groups == g]
        if symmetric:
            scale = coarse(2 * part.abs().amax(1) / top, precision)
            zero = torch.full_like(scale, (top + 1) // 2)
        else:
            low, high = part.amin(1).clamp(max=0), part.amax(1).clamp(min=0)
            scale = coarse((high - low) / top, precision)
            zero = (-low / scale).round().clamp(1, top)
        scales.append(scale)
        zeros.append(zero)
    scales, zeros = torch.stack(scales), torch.stack(zeros)
    q = (w / scales[groups].T + zeros[groups].T).round().clamp(0, top)
    return q.long(), scales, zeros.long()


def gptq(bits: int, group: int, symmetric: bool, desc_act: bool, offset: int, bias: bool = False):
    """Rows of `qweight` hold consecutive inputs, columns of `qzeros` consecutive outputs. `offset` is
    what is taken from the zeros before they are packed: 1 in checkpoint_format gptq, 0 in gptq_v2.
    With desc_act, `g_idx` sends each input to the group that it was quantised in."""

    def to(w: torch.Tensor, gen: torch.Generator) -> Tensors:
        n = w.shape[1]
        order = torch.randperm(n, generator=gen) if desc_act else torch.arange(n)
        g_idx = order // (n if group == -1 else group)
        q, scales, zeros = affine(w, g_idx, bits, symmetric)
        out = {
            "qweight": pack(q, bits).T.contiguous(),
            "qzeros": pack(zeros - offset, bits),
            "scales": scales.half(),
            "g_idx": g_idx.int(),
        }
        return {**out, "bias": torch.zeros(w.shape[0]).half()} if bias else out

    def back(t: Tensors, shape: torch.Size) -> torch.Tensor:
        groups = t["g_idx"].long()
        zeros = unpack(t["qzeros"], bits) + offset
        q = unpack(t["qweight"].T, bits)
        return (t["scales"].float()[groups] * (q.T - zeros[groups])).T

    return to, back


def awq(group: int):
    """Columns of `qweight` and `qzeros` hold eight consecutive outputs in AWQ_ORDER."""

    def interleave(ints: torch.Tensor) -> torch.Tensor:
        return ints.unflatten(-1, (-1, 8))[..., AWQ_ORDER].flatten(-2)

    def deinterleave(ints: torch.Tensor) -> torch.Tensor:
        places = torch.tensor(AWQ_ORDER).argsort()
        return ints.unflatten(-1, (-1, 8))[..., places].flatten(-2)

    def to(w: torch.Tensor, gen: torch.Generator) -> Tensors:
        q, scales, zeros = affine(w, torch.arange(w.shape[1]) // group, 4, False)
        return {
            "qweight": pack(interleave(q.T), 4),
            "qzeros": pack(interleave(zeros), 4),
            "scales": scales.half(),
        }

    def back(t: Tensors, shape: torch.Size) -> torch.Tensor:
        q, zeros = deinterleave(unpack(t["qweight"], 4)), deinterleave(unpack(t["qzeros"], 4))
        rows = torch.arange(q.shape[0]) // group
        return ((q - zeros[rows]) * t["scales"].float()[rows]).T

    return to, back


# ------------------------------------------------------------------------- fp8


def e4m3(w: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return (w / scale).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)


def fp8_blocks(rows: int, columns: int):
    """One scale for each block of so many outputs and inputs; blocks at the edges may be smaller."""

    def spread(scale: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        whole = scale.repeat_interleave(rows, 0).repeat_interleave(columns, 1)
        return whole[: shape[0], : shape[1]]

    def to(w: torch.Tensor, gen: torch.Generator) -> Tensors:
        parts = [[p.abs().max() for p in band.split(columns, 1)] for band in w.split(rows, 0)]
        scale = coarse(torch.tensor(parts) / E4M3_MAX)
        return {"weight": e4m3(w, spread(scale, w.shape)), "weight_scale_inv": scale}

    def back(t: Tensors, shape: torch.Size) -> torch.Tensor:
        return t["weight"].float() * spread(t["weight_scale_inv"], shape)

    return to, back


def fp8_scaled(channel: bool):
    """One scale for each output, or one for the whole matrix and another, of no concern to the weights,
    for its inputs."""

    def to(w: torch.Tensor, gen: torch.Generator) -> Tensors:
        top = w.abs().amax(1, keepdim=True) if channel else w.abs().max().view(1)
        scale = coarse(top / E4M3_MAX)
        out = {"weight": e4m3(w, scale), "weight_scale": scale.bfloat16()}
        return out if channel else {**out, "input_scale": torch.tensor([0.03125]).bfloat16()}

    def back(t: Tensors, shape: torch.Size) -> torch.Tensor:
        return t["weight"].float() * t["weight_scale"].float()

    return to, back


# ---------------------------------------------------- compressed-tensors, integers


def int8_channels():
    def to(w: torch.Tensor, gen: torch.Generator) -> Tensors:
        scale = coarse(w.abs().amax(1, keepdim=True) / 127, 1)
        return {"weight": (w / scale).round().clamp(-128, 127).char(), "weight_scale": scale.bfloat16()}

    def back(t: Tensors, shape: torch.Size) -> torch.Tensor:
        return t["weight"].float() * t["weight_scale"].float()

    return to, back


def int4_packed(group: int):
    """Rows of `weight_packed` hold consecutive inputs, 8 added to each; `weight_scale` [out, groups]."""

    def to(w: torch.Tensor, gen: torch.Generator) -> Tensors:
        scale = coarse(w.unflatten(1, (-1, group)).abs().amax(2) / 7.5)
        q = (w / scale.repeat_interleave(group, 1)).round().clamp(-8, 7)
        return {
            "weight_packed": pack(q + 8, 4),
            "weight_scale": scale.bfloat16(),
            "weight_shape": torch.tensor(w.shape),
        }

    def back(t: Tensors, shape: torch.Size) -> torch.Tensor:
        q = unpack(t["weight_packed"], 4) - 8
        return q * t["weight_scale"].float().repeat_interleave(group, 1)

    return to, back


# ---------------------------------------------------------------- bitsandbytes


def nearest(x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    return (x[..., None] - table).abs().argmin(-1)


def dynamic_map() -> torch.Tensor:
    """The signed eight-bit dynamic data type, arXiv:2110.02861: seven decades, each with twice as many
    numbers as the one below it, zero and one."""
    numbers = [0.0, 1.0]
    for i in range(7):
        edges = torch.linspace(0.1, 1, 2**i + 1)
        middles = (edges[:-1] + edges[1:]) / 2
        numbers += (10 ** (i - 6) * middles).tolist() + (-(10 ** (i - 6)) * middles).tolist()
    return torch.tensor(sorted(numbers))


def nf4(nested: bool):
    """Two values a byte, the first one in the upper half; one largest value for each 64, itself in eight
    bits when nested. What is no tensor is JSON in a tensor of bytes."""

    def to(w: torch.Tensor, gen: torch.Generator) -> Tensors:
        blocks = w.reshape(-1, NF4_BLOCK)
        top, state = blocks.abs().amax(1), {}
        out = {"weight.absmax": top}
        if nested:
            table, offset = dynamic_map(), top.mean()
            rest = (top - offset).split(NESTED_BLOCK)
            tops = torch.stack([r.abs().max() for r in rest])
            ints = torch.cat([nearest(r / t, table) for r, t in zip(rest, tops)])
            out = {
                "weight.absmax": ints.byte(),
                "weight.nested_absmax": tops,
                "weight.nested_quant_map": table,
            }
            state = {
                "nested_blocksize": NESTED_BLOCK,
                "nested_dtype": "float32",
                "nested_offset": offset.item(),
            }
        q = nearest(blocks / top[:, None], torch.tensor(NF4)).flatten()
        state = {
            "quant_type": "nf4", "blocksize": NF4_BLOCK, "dtype": "float32", "shape": list(w.shape), **state,
        }  # fmt: skip
        return {
            "weight": (q[::2] * 16 + q[1::2]).byte().view(-1, 1),
            "weight.quant_map": torch.tensor(NF4),
            "weight.quant_state.bitsandbytes__nf4": torch.tensor(list(json.dumps(state).encode())).byte(),
            **out,
        }

    def unnest(t: Tensors, state: dict) -> torch.Tensor:
        rows = torch.arange(t["weight.absmax"].numel()) // state["nested_blocksize"]
        values = t["weight.nested_quant_map"][t["weight.absmax"].long()]
        return values * t["weight.nested_absmax"][rows] + state["nested_offset"]

    def back(t: Tensors, shape: torch.Size) -> torch.Tensor:
        state = json.loads(bytes(t["weight.quant_state.bitsandbytes__nf4"].tolist()))
        top = unnest(t, state) if nested else t["weight.absmax"]
        bytes_ = t["weight"].flatten().long()
        q = torch.stack([bytes_ >> 4, bytes_ & 15], 1).view(-1, state["blocksize"])
        return (t["weight.quant_map"][q] * top[:, None]).view(state["shape"])

    return to, back


def llm_int8():
    """`SCB` holds the largest value of each output."""

    def to(w: torch.Tensor, gen: torch.Generator) -> Tensors:
        top = w.abs().amax(1)
        return {
            "weight": (w * (127 / top[:, None])).round().char(),
            "SCB": top,
            "weight_format": torch.tensor(0, dtype=torch.uint8),
        }

    def back(t: Tensors, shape: torch.Size) -> torch.Tensor:
        return t["weight"].float() * t["SCB"][:, None] / 127

    return to, back


# ---------------------------------------------------------------------- formats


@dataclass
class Format:
    note: str
    codec: tuple[Callable, Callable]
    # quantization_config of config.json
    config: dict
    # What weights are off by at most, relative to the root mean square of their matrix.
    error: float
    dtype: str = field(default="bfloat16")


def gptq_config(bits: int, group: int, symmetric: bool, desc_act: bool, version: str) -> dict:
    return {
        "bits": bits,
        "checkpoint_format": version,
        "damp_percent": 0.01,
        "desc_act": desc_act,
        "group_size": group,
        "lm_head": False,
        "quant_method": "gptq",
        "sym": symmetric,
        "true_sequential": True,
    }


def compressed(layout: str, weights: dict, activations: dict | None) -> dict:
    group = {
        "input_activations": activations,
        "output_activations": None,
        "targets": ["Linear"],
        "weights": {"dynamic": False, "symmetric": True, **weights},
    }
    return {
        "config_groups": {"group_0": group},
        "format": layout,
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
    }


def bitsandbytes(four: bool, nested: bool) -> dict:
    return {
        "_load_in_4bit": four,
        "_load_in_8bit": not four,
        "bnb_4bit_compute_dtype": "float32",
        "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_quant_type": "nf4" if four else "fp4",
        "bnb_4bit_use_double_quant": nested,
        "llm_int8_enable_fp32_cpu_offload": False,
        "llm_int8_has_fp16_weight": False,
        "llm_int8_skip_modules": None,
        "llm_int8_threshold": 6.0,
        "load_in_4bit": four,
        "load_in_8bit": not four,
        "quant_method": "bitsandbytes",
    }


TOKEN_FP8 = {"dynamic": True, "num_bits": 8, "strategy": "token", "symmetric": True, "type": "float"}
TENSOR_FP8 = {"dynamic": False, "num_bits": 8, "strategy": "tensor", "symmetric": True, "type": "float"}
TOKEN_INT8 = {"dynamic": True, "num_bits": 8, "strategy": "token", "symmetric": True, "type": "int"}

FORMATS = {
    "gptq": Format(
        "GPTQ, 4 bits, groups of 16 with zeros",
        gptq(4, 16, False, False, offset=1),
        gptq_config(4, 16, False, False, "gptq"),
        0.5,
        "float16",
    ),
    "gptq_desc_act": Format(
        "GPTQ, 4 bits, groups of 16 out of order, symmetric, with biases of zero",
        gptq(4, 16, True, True, offset=1, bias=True),
        gptq_config(4, 16, True, True, "gptq"),
        0.5,
        "float16",
    ),
    "gptq_v2": Format(
        "GPTQ, 8 bits, one group, checkpoint_format gptq_v2",
        gptq(8, -1, False, False, offset=0),
        gptq_config(8, -1, False, False, "gptq_v2"),
        0.05,
        "float16",
    ),
    "awq": Format(
        "AWQ, 4 bits, groups of 16, version gemm",
        awq(16),
        {
            "bits": 4,
            "group_size": 16,
            "modules_to_not_convert": None,
            "quant_method": "awq",
            "version": "gemm",
            "zero_point": True,
        },
        0.5,
        "float16",
    ),
    "fp8_blocks": Format(
        "fp8 as DeepSeek-V3 and Qwen3 have it, blocks of 24 x 24 that do not divide the matrices",
        fp8_blocks(24, 24),
        {
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "quant_method": "fp8",
            "weight_block_size": [24, 24],
        },
        0.3,
    ),
    "compressed_fp8_channel": Format(
        "compressed-tensors, fp8 with one scale for each output",
        fp8_scaled(True),
        compressed("float-quantized", {"num_bits": 8, "strategy": "channel", "type": "float"}, TOKEN_FP8),
        0.3,
    ),
    "compressed_fp8_tensor": Format(
        "compressed-tensors, fp8 with one scale for each matrix",
        fp8_scaled(False),
        compressed("float-quantized", {"num_bits": 8, "strategy": "tensor", "type": "float"}, TENSOR_FP8),
        0.3,
    ),
    "compressed_int8": Format(
        "compressed-tensors, 8-bit integers with one scale for each output",
        int8_channels(),
        compressed("int-quantized", {"num_bits": 8, "strategy": "channel", "type": "int"}, TOKEN_INT8),
        0.05,
    ),
    "compressed_int4": Format(
        "compressed-tensors, packed 4-bit integers in groups of 16",
        int4_packed(16),
        compressed(
            "pack-quantized", {"group_size": 16, "num_bits": 4, "strategy": "group", "type": "int"}, None
        ),
        0.5,
    ),
    "bitsandbytes_nf4": Format(
        "bitsandbytes, NF4 in blocks of 64", nf4(False), bitsandbytes(True, False), 0.7
    ),
    "bitsandbytes_nf4_nested": Format(
        "bitsandbytes, NF4 whose largest values are quantised too", nf4(True), bitsandbytes(True, True), 0.7
    ),
    "bitsandbytes_int8": Format(
        "bitsandbytes, LLM.int8()", llm_int8(), bitsandbytes(False, False), 0.05, "float16"
    ),
}


def is_linear(name: str) -> bool:
    return name.endswith("_proj.weight")


def quantise(state: Tensors, form: Format, seed: int) -> tuple[Tensors, Tensors]:
    """The checkpoint's tensors, and the model's weights as they read back, in f32."""
    (to, back), gen = form.codec, torch.Generator().manual_seed(seed)
    dtype = getattr(torch, form.dtype)
    packed, plain = {}, {}
    for name in sorted(state):
        w = state[name].float()
        if not is_linear(name):
            packed[name], plain[name] = w.to(dtype), w.to(dtype).float()
            continue
        parts = to(w, gen)
        packed.update({name.removesuffix("weight") + k: v for k, v in parts.items()})
        plain[name] = back(parts, w.shape)
        off = (plain[name] - w).abs().max() / w.pow(2).mean().sqrt()
        assert 0 < off < form.error, f"{name} is off by {off:.3f}"
    return packed, plain
