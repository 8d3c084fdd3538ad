"""Write every golden of specs.py: checkpoints, activations, interventions, generated tokens.

    python make_goldens.py OUT [--only NAME ...]

Two runs give the same bytes. It fails where f32 is far from f64, where two tokens are nearly tied, or
where a feature that a golden is there to catch does not move its last block.
"""
import argparse
import json
from pathlib import Path

import torch
import transformers as tf
from safetensors.torch import load_file

from features import features
from golden import golden, load
from greedy import greedy
from interventions import interventions
from make_tiny_models import seed, write
from specs import SPECS, Spec


def make(name: str, spec: Spec, out: Path) -> None:
    model = out / "model"
    write(name, spec, model)
    report = golden(model, out, seed(name), spec.long, spec.points)
    if spec.points is None:
        ids = load_file(out / "long.safetensors")["input_ids"]
        interventions(load(model), ids, out)
    if spec.generates:
        report["greedy"] = greedy(model, out, seed(name), spec.cache)
    report["without"] = features(model, out, spec.features)
    print(json.dumps({"model": name, **report}), flush=True)


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    ap.add_argument("out", type=Path)
    ap.add_argument("--only", nargs="*", choices=SPECS)
    args = ap.parse_args()
    torch.set_num_threads(1)
    tf.utils.logging.set_verbosity_error()
    tf.utils.logging.disable_progress_bar()
    for name in args.only or SPECS:
        make(name, SPECS[name], args.out / name)


if __name__ == "__main__":
    main()
