"""Trains each architecture with each project and judges all of them by the same held-out rows.

    python study.py STORE RESULTS.jsonl --bin target/release [--device cuda] [--peers 8] [--ours 4]

STORE holds runs made by `rows.py` (see README.md). For every data set, architecture and project the
learning rate is doubled or halved until the best lies between two worse ones (seed 0); the best then
runs with seeds 1 and 2. What RESULTS.jsonl already has is not run again. `table.py` prints it.
"""
import argparse
import json
import multiprocessing as mp
import os
import shutil
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

D_SAE = {"planted": 4096, "minilm": 3072}
K, BATCH = 16, 512
ARCHITECTURES = ["topk", "batchtopk", "jumprelu", "matryoshka"]
PROJECTS = ["ours", "saelens", "dictionary_learning"]
START, LOWEST, HIGHEST = [1e-3, 2e-3, 4e-3], 1.25e-4, 3.2e-2
# The straight-through window, in units of a row's rms norm; the projects' defaults are the first.
WINDOWS = {"ours": [0.001, 0.004], "saelens": [None], "dictionary_learning": [0.001, 0.004]}
SEEDS = [0, 1, 2]

cache = {}


def data(store: str, name: str, device: str):
    """Training rows (f16), their rms norm, and held-out rows divided by it, on the device."""
    import numpy as np
    import torch

    from rows import capture_rows

    if name not in cache:
        run = Path(store) / "runs" / name
        rows = torch.from_numpy(capture_rows(run)).to(device)
        held = torch.from_numpy(np.load(run / "held.npy")).to(device).float()
        squares = sum(part.float().pow(2).sum(dtype=torch.double) for part in rows.split(65536))
        rms = (squares / len(rows)).sqrt().float()
        cache[name] = (rows, rms, held / rms)
    return cache[name]


def judge(sae, held, name: str) -> dict:
    """FVU and L0 as the SAE is used, FVU when all thresholds are scaled so that L0 is K, latents
    that never fire, planted features with a decoder row of cosine above 0.9.
    """
    import torch

    from rows import dictionary

    with torch.no_grad():
        pre = torch.cat([sae.encode(x) for x in held.split(2048)])
        if sae.threshold is None:
            top = pre.topk(K)
            score = torch.zeros_like(pre).scatter_(1, top.indices, 2.0) * (pre > 0)
        else:
            score = pre / sae.threshold.float().clamp_min(1e-9)
        spread = (held - held.mean(0)).double().pow(2).sum().item()

        def fvu(bound: float) -> float:
            error = 0.0
            for x, p, s in zip(held.split(2048), pre.split(2048), score.split(2048)):
                error += (sae.decode(p * (s > bound)) - x).double().pow(2).sum().item()
            return error / spread

        result = {"fvu": fvu(1.0), "l0": (score > 1).sum().item() / len(held)}
        result["dead"] = 1 - (score > 1).any(0).float().mean().item()
        if sae.threshold is None:
            result["fvu_at_k"] = result["fvu"]
        else:
            bounds = [s.flatten().topk(4 * K * len(s)).values for s in score.split(2048)]
            bound = torch.cat(bounds).sort(descending=True).values[K * len(held)]
            result["fvu_at_k"] = fvu(bound.item())
        if name == "planted":
            unit = sae.decoder.float() / sae.decoder.float().norm(dim=1, keepdim=True)
            best = (dictionary().to(unit.device) @ unit.T).max(1).values
            result["recovered"] = (best > 0.9).float().mean().item()
    return result


def ours(directory: str, device: str, rms: float):
    """The SAE of a SAELens directory, for rows divided by `rms`."""
    import torch
    from safetensors.torch import load_file

    from peers import Trained

    config = json.loads((Path(directory) / "cfg.json").read_text())
    weights = load_file(f"{directory}/sae_weights.safetensors")
    w = {name: tensor.float().to(device) for name, tensor in weights.items()}
    norms = w["W_dec"].norm(dim=1) if config.get("rescale_acts_by_decoder_norm") else 1.0
    shift = w["b_dec"] if config["apply_b_dec_to_input"] else 0.0

    def encode(x):
        return torch.relu((x * rms - shift) @ w["W_enc"] + w["b_enc"]) * norms

    def decode(acts):
        return (acts / norms @ w["W_dec"] + w["b_dec"]) / rms

    return Trained(encode, decode, w.get("threshold"), w["W_dec"])


def run_peer(job: dict, store: str, device: str, tokens: int) -> dict:
    """Trains one of the others, or only judges what ours has left in `job["trained"]`."""
    import torch

    import peers

    torch.set_num_threads(1)
    name = job["data"]
    rows, rms, held = data(store, name, device)
    if job["project"] == "ours":
        trained = ours(job["trained"], device, rms)
    else:
        torch.manual_seed(job["seed"])
        plan = peers.Plan(
            rows, rms, D_SAE[name], K, BATCH, tokens, job["lr"], job["seed"], device, job["window"]
        )
        trained = getattr(peers, job["project"])(job["arch"], plan)
    return judge(trained, held, name)


def train_ours(job: dict, store: str, binaries: str, tokens: int) -> str:
    """Runs `02_train_sae` on one thread; the directory of the trained SAE."""
    name = "-".join(str(job[key]) for key in ["data", "arch", "seed", "lr", "window"])
    settings = {
        "STORE_DIR": store, "RUN_ID": job["data"], "SAE_RUN_ID": name, "SAE_ARCH": job["arch"],
        "D_SAE": D_SAE[job["data"]], "TOP_K": K, "TOKENS": tokens, "BATCH_SIZE_TRAIN": BATCH,
        "LR": job["lr"], "SEED": job["seed"], "VALIDATION": 0.002, "CHECKPOINT_EVERY": 100_000,
        "RAYON_NUM_THREADS": 1,
    }
    if job["arch"] == "jumprelu":
        settings |= {"L0_MODE": "target", "L0_LAMBDA": 1, "TARGET_L0": K, "BANDWIDTH": job["window"]}
    env = os.environ | {key: str(value) for key, value in settings.items()}
    done = subprocess.run(
        [f"{binaries}/02_train_sae"], env=env, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return str(Path(store) / "runs" / name)


class Study:
    def __init__(self, a):
        self.a = a
        self.lock = threading.Lock()
        self.results = {}
        if a.results.exists():
            for line in a.results.read_text().splitlines():
                row = json.loads(line)
                self.results[self.key(row)] = row
        self.peers = mp.get_context("spawn").Pool(a.peers)
        self.slots = threading.Semaphore(a.ours)

    @staticmethod
    def key(row: dict) -> tuple:
        return tuple(row[k] for k in ["data", "arch", "project", "seed", "lr", "window"])

    def run(self, **job) -> float:
        """The FVU of a training, which is run unless it was before."""
        key = self.key(job)
        if key not in self.results:
            begin = time.time()
            if job["project"] == "ours":
                with self.slots:
                    begin = time.time()
                    job["trained"] = train_ours(job, self.a.store, self.a.bin, self.a.tokens)
            found = self.peers.apply(run_peer, (job, self.a.store, self.a.device, self.a.tokens))
            trained = job.pop("trained", None)
            if trained:
                shutil.rmtree(trained)
            row = job | found | {"seconds": round(time.time() - begin, 1)}
            with self.lock:
                self.results[key] = row
                with open(self.a.results, "a") as file:
                    file.write(json.dumps(row) + "\n")
        return self.results[key]["fvu_at_k"]

    def many(self, jobs: list[dict]) -> list[float]:
        with ThreadPoolExecutor(len(jobs)) as pool:
            return list(pool.map(lambda job: self.run(**job), jobs))

    def combination(self, base: dict) -> None:
        """Searches the learning rate, then runs the best with the other seeds."""
        rates, best = list(START), None
        while True:
            fvu = self.many([base | {"seed": 0, "lr": lr} for lr in rates])
            best = min(range(len(rates)), key=lambda i: fvu[i])
            if best == 0 and rates[0] > LOWEST:
                rates.insert(0, rates[0] / 2)
            elif best == len(rates) - 1 and rates[-1] < HIGHEST:
                rates.append(rates[-1] * 2)
            else:
                break
        self.many([base | {"seed": seed, "lr": rates[best]} for seed in SEEDS[1:]])


def main() -> None:
    ap = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    ap.add_argument("store")
    ap.add_argument("results", type=Path)
    ap.add_argument("--bin", default="target/release")
    ap.add_argument("--device", default="cpu")
    ap.add_argument("--peers", type=int, default=1, help="trainings of the others at a time")
    ap.add_argument("--ours", type=int, default=1, help="trainings of ours at a time")
    ap.add_argument("--data", nargs="+", default=list(D_SAE))
    ap.add_argument("--arch", nargs="+", default=ARCHITECTURES)
    ap.add_argument("--project", nargs="+", default=PROJECTS)
    ap.add_argument("--tokens", type=int, default=1_024_000)
    a = ap.parse_args()
    study = Study(a)
    combinations = [
        {"data": name, "arch": arch, "project": project, "window": window}
        for name in a.data
        for arch in a.arch
        for project in a.project
        for window in (WINDOWS[project] if arch == "jumprelu" else [None])
    ]
    with ThreadPoolExecutor(len(combinations)) as pool:
        for done in [pool.submit(study.combination, base) for base in combinations]:
            done.result()


if __name__ == "__main__":
    main()
