"""Write every golden of specs.py: checkpoints, activations, interventions, generated tokens.

    python make_goldens.py OUT [--only NAME ...]

Two runs give the same bytes. It fails where f32 is far from f64, where two tokens are nearly tied, or
where a feature that a golden is there to catch does not move its last block.
"""
import argparse
import json
import tempfile
from pathlib import Path

import torch
import transformers as tf
from safetensors.torch import load_file

from features import features
from files import save_file
from forms import FORMS
from golden import golden, load
from greedy import greedy
from interventions import interventions
from make_tiny_models import save_weights, seed, write, write_config
from quantised import FORMATS, Format, quantise
from specs import ACTIVATIONS, QUANTISED, SPECS, Spec


def make(name: str, spec: Spec, out: Path) -> None:
    model = out / "model"
    state = write(name, spec, model)
    report = golden(model, out, seed(name), spec.long, spec.points)
    if spec.points is None:
        ids = load_file(out / "long.safetensors")["input_ids"]
        interventions(load(model), ids, out)
    if spec.generates:
        report["greedy"] = greedy(model, out, seed(name), spec.cache)
    report["without"] = features(model, out, spec.features)
    for form, write_form in FORMS.get(name, {}).items():
        (out / form).mkdir(exist_ok=True)
        write_form(state, spec.config, out / form)
        check_form(model, out / form)
    print(json.dumps({"model": name, **report}), flush=True)


@torch.no_grad()
def check_form(model: Path, form: Path) -> None:
    """What the bare model computes from both, bit for bit."""
    ids = torch.arange(10).view(1, -1)
    bodies = [load_body(path)(ids).last_hidden_state for path in (model, form)]
    assert torch.equal(*bodies), f"{form}: not the same weights"


def load_body(path: Path):
    """The model without its head; of a multimodal one, the part for text."""
    model = tf.AutoModel.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
    return getattr(model, "language_model", model).eval()


def make_quantised(name: str, form: Format, out: Path) -> None:
    """A quantised checkpoint, and the activations of the model whose weights were read back from it."""
    model, config = out / "model", {**QUANTISED, "torch_dtype": form.dtype}
    with tempfile.TemporaryDirectory() as tmp:
        plain = Path(tmp) / "plain"
        state = write(name, Spec(config, form.note), plain)
        packed, weights = quantise(state, form, seed(name))
        write_config({**config, "torch_dtype": "float32"}, plain)
        save_weights(plain, weights, 1)
        report = golden(plain, out, seed(name), 24, ACTIVATIONS, files=("long",))
    model.mkdir(exist_ok=True)
    write_config({**config, "quantization_config": form.config}, model)
    save_file(packed, model / "model.safetensors", {"format": "pt"})
    print(json.dumps({"model": name, **report}), flush=True)


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    ap.add_argument("out", type=Path)
    ap.add_argument("--only", nargs="*", choices=[*SPECS, *FORMATS])
    args = ap.parse_args()
    torch.set_num_threads(1)
    tf.utils.logging.set_verbosity_error()
    tf.utils.logging.disable_progress_bar()
    for name in args.only or [*SPECS, *FORMATS]:
        if name in SPECS:
            make(name, SPECS[name], args.out / name)
        else:
            make_quantised(name, FORMATS[name], args.out / "quantised" / name)


if __name__ == "__main__":
    main()
