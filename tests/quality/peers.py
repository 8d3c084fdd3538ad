"""SAELens and dictionary_learning, trained step by step on the same batches.

Both get what ours gets: the same batch size, warm-up over a tenth of the steps, a linear fall over
the last fifth, latents counted as dead after a tenth of the tokens, the target L0.
Everything else is their own default.
"""
import sys
import types

from collections.abc import Callable
from dataclasses import dataclass

import torch

PREFIXES = [0.0625, 0.125, 0.25, 0.5, 1.0]


@dataclass
class Trained:
    """An SAE for rows of mean square norm 1: pre-activations after ReLU, and rows from latents.

    A latent is active above `threshold` (a number or one a latent), or among its row's k largest
    where that is None.
    """

    encode: Callable[[torch.Tensor], torch.Tensor]
    decode: Callable[[torch.Tensor], torch.Tensor]
    threshold: torch.Tensor | None
    decoder: torch.Tensor


class Plan:
    """What all trainings share. `rows` is [n, d_in], on the device; batches are divided by `rms`."""

    def __init__(self, rows, rms, d_sae, k, batch, tokens, lr, seed, device, bandwidth=None):
        self.rows, self.rms, self.d_sae, self.k, self.batch, self.lr = rows, rms, d_sae, k, batch, lr
        self.seed, self.device, self.bandwidth = seed, device, bandwidth
        self.d_in, self.steps = rows.shape[1], tokens // batch
        self.warmup, self.fall = self.steps // 10, self.steps // 5

    def batches(self):
        gen = torch.Generator(self.device).manual_seed(self.seed)
        order = torch.empty(0, dtype=torch.long, device=self.device)
        for _ in range(self.steps):
            if len(order) < self.batch:
                fresh = torch.randperm(len(self.rows), generator=gen, device=self.device)
                order = torch.cat([order, fresh])
            yield self.rows[order[: self.batch]].float() / self.rms
            order = order[self.batch :]


def saelens(arch: str, plan: Plan):
    """SAELens, fed as it normalises: mean square norm d_in."""
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.saes import batchtopk_sae, jumprelu_sae, matryoshka_batchtopk_sae, topk_sae
    from sae_lens.training.sae_trainer import SAETrainer

    base = dict(d_in=plan.d_in, d_sae=plan.d_sae, device=plan.device)
    if arch == "jumprelu":
        # Its quadratic penalty, as heavy beside an error of d_in as dictionary_learning's is beside 1.
        sae = jumprelu_sae.JumpReLUTrainingSAE(
            jumprelu_sae.JumpReLUTrainingSAEConfig(
                **base, jumprelu_sparsity_loss_mode="quadratic", target_l0=plan.k,
                l0_coefficient=plan.d_in, l0_warm_up_steps=plan.steps // 5,
                **({"jumprelu_bandwidth": plan.bandwidth} if plan.bandwidth else {}),
            )
        )
    elif arch == "topk":
        sae = topk_sae.TopKTrainingSAE(topk_sae.TopKTrainingSAEConfig(**base, k=plan.k))
    elif arch == "batchtopk":
        sae = batchtopk_sae.BatchTopKTrainingSAE(
            batchtopk_sae.BatchTopKTrainingSAEConfig(**base, k=plan.k)
        )
    else:
        widths = [int(plan.d_sae * share) for share in PREFIXES]
        sae = matryoshka_batchtopk_sae.MatryoshkaBatchTopKTrainingSAE(
            matryoshka_batchtopk_sae.MatryoshkaBatchTopKTrainingSAEConfig(
                **base, k=plan.k, matryoshka_widths=widths
            )
        )
    config = SAETrainerConfig(
        total_training_samples=plan.steps * plan.batch, train_batch_size_samples=plan.batch,
        lr=plan.lr, lr_end=plan.lr / 100, lr_warm_up_steps=plan.warmup, lr_decay_steps=plan.fall,
        dead_feature_window=plan.warmup, device=plan.device,
        logger=LoggingConfig(log_to_wandb=False),
    )
    trainer = SAETrainer(config, sae, iter(()))
    scale = plan.d_in**0.5
    for x in plan.batches():
        trainer.n_training_samples += len(x)
        trainer.step(x * scale)
        trainer.n_training_steps += 1
    norms = 1.0 if arch == "jumprelu" else sae.W_dec.norm(dim=-1)
    threshold = sae.threshold if arch == "jumprelu" else getattr(sae, "topk_threshold", None)

    def encode(x):
        return torch.relu((x * scale - sae.b_dec * sae.cfg.apply_b_dec_to_input) @ sae.W_enc + sae.b_enc) * norms

    def decode(acts):
        return (acts / norms @ sae.W_dec + sae.b_dec) / scale

    return Trained(encode, decode, threshold, sae.W_dec.detach())


def dictionary_learning(arch: str, plan: Plan):
    """dictionary_learning, fed rows of mean square norm 1."""
    if "nnsight" not in sys.modules:  # only a type's name is taken from it
        sys.modules["nnsight"] = types.SimpleNamespace(LanguageModel=object)
    from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
    from dictionary_learning.trainers.jumprelu import JumpReluTrainer
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer
    from dictionary_learning.trainers.top_k import TopKTrainer

    base = dict(
        steps=plan.steps, activation_dim=plan.d_in, dict_size=plan.d_sae, layer=0, lm_name="none",
        device=plan.device, warmup_steps=plan.warmup, decay_start=plan.steps - plan.fall,
        seed=plan.seed, lr=plan.lr,
    )
    if arch == "jumprelu":
        trainer = JumpReluTrainer(
            **base, sparsity_warmup_steps=plan.steps // 5, target_l0=plan.k,
            bandwidth=plan.bandwidth or 0.001,
        )
    else:
        base |= dict(k=plan.k, threshold_start_step=plan.steps // 2)
        if arch == "topk":
            trainer = TopKTrainer(**base)
        elif arch == "batchtopk":
            trainer = BatchTopKTrainer(**base)
        else:
            shares = [b - a for a, b in zip([0.0] + PREFIXES, PREFIXES)]
            trainer = MatryoshkaBatchTopKTrainer(**base, group_fractions=shares)
        trainer.dead_feature_threshold = plan.warmup * plan.batch
    for step, x in enumerate(plan.batches()):
        trainer.update(step, x)
    ae = trainer.ae
    if arch in ("topk", "batchtopk"):
        w_enc, b_enc, w_dec = ae.encoder.weight.T, ae.encoder.bias, ae.decoder.weight.T
    else:
        w_enc, b_enc, w_dec = ae.W_enc, ae.b_enc, ae.W_dec
    shift = 0.0 if arch == "jumprelu" else ae.b_dec  # its JumpReLU encodes rows as they are

    def encode(x):
        return torch.relu((x - shift) @ w_enc + b_enc)

    threshold = None if arch == "topk" else ae.threshold
    return Trained(encode, ae.decode, threshold, w_dec.detach())
