"""The options of `pg-mlx train`, in mlx-lm's words where it has them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..errors import InputError
from .options import Parser, bounded, memory_size

DESCRIPTION = "Fine-tune a PaliGemma on your pictures: an adapter (LoRA, DoRA) or all of its weights."

EPILOG = """\
data: a folder or file of Roboflow's JSONL, COCO (boxes, masks, captions), VIA, mlx-vlm's "messages" rows, or pictures
with .txt files. Splits (train, valid, test) are found by name; without one, a tenth of the pictures is for validation.

examples:
  look first: counts, memory, and the examples drawn into OUT.png; nothing is trained
    %(prog)s --model google/paligemma2-3b-pt-224 --data ./coins --adapter-path ./out --dry-run

  learn 10 epochs, and ask the result
    %(prog)s --model google/paligemma2-3b-pt-224 --data ./coins --adapter-path ./out
    pg-mlx generate --model google/paligemma2-3b-pt-224 --adapter-path ./out/best --image new.jpg --prompt "detect coin"

  stop with Ctrl-C, and go on exactly where it stopped
    %(prog)s --resume --adapter-path ./out

  little memory: a 4-bit base (QLoRA), few rows at a time
    pg-mlx convert --hf-path google/paligemma2-3b-pt-448 --mlx-path ./pg2-4bit -q
    %(prog)s --model ./pg2-4bit --data ./coins --adapter-path ./out --batch-size 2 --grad-accumulation-steps 4

  masks from COCO polygons; things that look new; old skills kept by a quarter of old questions
    %(prog)s --data ./cells --task segment --train-vision --mix ./old=0.25 --adapter-path ./out

docs/training.md is a tutorial. The scores are printed on stdout, everything else on stderr.
exit code: 0, 1 for a failure, 2 for a wrong input, 130 after Ctrl-C (the run is saved).
"""


def parser(program: str) -> argparse.ArgumentParser:
    """The options of this command."""
    p = Parser(program, DESCRIPTION, EPILOG)
    p.add_argument("-c", "--config", metavar="FILE", help="YAML or JSON with these options; those given here win")
    p.add_argument("--adapter-path", default="adapters", metavar="OUT", help="folder to write (default: adapters)")
    p.add_argument("--resume", action="store_true", help="go on with the run in OUT; its options need not be repeated")
    p.add_argument("--force", action="store_true", help="begin anew in place of an older run in OUT")
    p.add_argument("--dry-run", action="store_true", help="show the data and the memory; OUT.png shows examples")
    p.add_argument("--test", action="store_true", help="at the end, score the best on the test split")
    p.add_argument("--format", choices=("text", "json"), default="text", help="of the scores on stdout")
    p.add_argument("--report-to", metavar="NAMES", help="wandb, swanlab: through mlx-lm's callbacks")
    p.add_argument("--project-name", metavar="NAME", help="for --report-to")
    p.add_argument("--train", action="store_true", help="accepted, as mlx-lm has it; always so")
    p.add_argument("--mask-prompt", action="store_true", help="accepted, as mlx-lm has it; prompts are never learnt")
    p.add_argument("--debug", action="store_true", help="show tracebacks")
    _model(p.add_argument_group("the model"))
    add_data_options(p.add_argument_group("the data"))
    _learning(p.add_argument_group("what learns"))
    _steps(p.add_argument_group("how it learns"))
    _watching(p.add_argument_group("watching it"))
    return p


def _model(p: argparse._ActionsContainer) -> None:
    p.add_argument("-m", "--model", metavar="M", help="folder, .npz or repository owner/name (default: the demo)")
    p.add_argument("--revision", metavar="R", help="branch, tag or commit of a repository")
    p.add_argument("--tokenizer", metavar="PATH", help="the tokenizer, for a model that has none")
    p.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="to compute in (default: bfloat16 on a GPU)"
    )
    p.add_argument("--mask-decoder", metavar="FILE", help="vae-oid.npz, for --task segment (default: the model's own)")
    p.add_argument(
        "--memory-limit", type=memory_size, metavar="SIZE", help="refuse a run that needs more, before it begins"
    )


def add_data_options(p: argparse._ActionsContainer) -> None:
    """Where the examples are, and how they are read."""
    p.add_argument("--data", metavar="D", help="folder or file of examples")
    p.add_argument("--images", metavar="DIR", help="folder of the pictures, if they are not beside the file")
    p.add_argument("--prefix", metavar="TEXT", help='the prompt of rows that have none, as "caption en"')
    p.add_argument(
        "--task", choices=("detect", "segment"), default="detect", help="made of labelled objects (default: detect)"
    )
    p.add_argument("--classes", type=_names, default=(), metavar="A,B", help="only these, in this order of the prompt")
    p.add_argument("--label", default="", metavar="NAME", help="of objects without one")
    p.add_argument("--per-class", action="store_true", help="a row for each class in a picture, and one that is absent")
    p.add_argument("--lowercase", action="store_true", help="prompts and answers in lower case")
    p.add_argument(
        "--val-share", type=_share, default=0.1, metavar="S", help="of pictures without a validation split (0.1)"
    )
    p.add_argument("--seed", type=bounded(0, 2**32 - 1), default=0, metavar="N", help="of everything random (0)")


def _learning(p: argparse._ActionsContainer) -> None:
    p.add_argument("--fine-tune-type", choices=("lora", "dora", "full"), default="lora", help="(default: lora)")
    p.add_argument("--lora-rank", type=bounded(1, 4096), default=8, metavar="R", help="(8)")
    p.add_argument("--lora-alpha", type=float, default=16.0, metavar="A", help="the update is scaled by A / R (16)")
    p.add_argument("--lora-dropout", type=float, default=0.0, metavar="P", help="(0)")
    p.add_argument("--target-modules", type=_targets, metavar="A,B", help="projections by name, or one pattern (all)")
    p.add_argument("--num-layers", type=bounded(-1, 1000), metavar="N", help="only the decoder's last N (all)")
    p.add_argument("--train-vision", action="store_true", help="tower and projector too, for things that look new")
    p.add_argument("--train-projector", action="store_true", help="the projector too")
    p.add_argument("--resume-adapter-file", metavar="A", help="folder or repository of an adapter to begin with")


def _steps(p: argparse._ActionsContainer) -> None:
    p.add_argument("--batch-size", type=bounded(1, 4096), default=8, metavar="N", help="rows at a time at most (8)")
    p.add_argument(
        "--grad-accumulation-steps", type=bounded(1, 4096), default=1, metavar="N", help="batches of one step (1)"
    )
    p.add_argument("--iters", type=bounded(1, 10_000_000), metavar="N", help="steps, as updates of the weights")
    p.add_argument("--epochs", type=float, metavar="E", help="or: how often the data is read (10)")
    p.add_argument("--learning-rate", type=float, metavar="X", help="(1e-4; full: 1e-5)")
    p.add_argument("--optimizer", choices=("adamw", "sgd", "adafactor"), default="adamw", help="(default: adamw)")
    p.add_argument("--schedule", choices=("cosine", "linear", "constant"), default="cosine", help="(default: cosine)")
    p.add_argument("--warmup", type=float, default=0.05, metavar="N", help="steps, or a share of them below 1 (0.05)")
    p.add_argument("--weight-decay", type=float, default=0.0, metavar="W", help="of matrices (0)")
    p.add_argument("--clip", type=float, default=1.0, metavar="X", help="largest norm of the gradients; 0 for any (1)")
    p.add_argument("--loss", choices=("token", "example"), default="token", help="tokens or rows weigh alike (token)")
    p.add_argument("--label-smoothing", type=float, default=0.0, metavar="E", help="(0)")
    p.add_argument(
        *("--no-final-softcap",),
        dest="final_softcap",
        action="store_false",
        help="as big_vision fine-tunes PaliGemma 2",
    )
    p.add_argument(
        "--grad-checkpoint",
        action=argparse.BooleanOptionalAction,
        help="compute layers twice instead of keeping them (default: where memory is short)",
    )
    p.add_argument("--max-seq-length", type=bounded(1, 100_000), metavar="N", help="refuse rows with more text tokens")
    p.add_argument("--mix", action="append", default=[], metavar="PATH=S", help="other data, so that old skills stay")
    p.add_argument("--augment", type=_names, default=(), metavar="A,B", help="flip, crop, color, order")


def _watching(p: argparse._ActionsContainer) -> None:
    p.add_argument("--metrics", type=_names, default=None, metavar="A,B", help="loss, exact, map, iou (what fits)")
    p.add_argument("--steps-per-report", type=bounded(1, 1_000_000), default=10, metavar="N", help="(10)")
    p.add_argument("--steps-per-eval", type=bounded(1, 10_000_000), metavar="N", help="(a tenth of the run)")
    p.add_argument("--val-batches", type=bounded(-1, 1_000_000), default=25, metavar="N", help="-1 for all (25)")
    p.add_argument("--save-every", type=bounded(1, 10_000_000), default=100, metavar="N", help="steps (100)")
    p.add_argument(
        "--patience", type=bounded(1, 1000), metavar="N", help="stop after N evaluations without a better one"
    )


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _targets(text: str) -> tuple[str, ...] | str:
    """Names, or a pattern: what has a letter of patterns in it."""
    return text if any(letter in text for letter in "*.[(|^$\\") else _names(text)


_share = bounded(0, 0.9, float)


def config_arguments(path: str) -> list[str]:
    """The arguments that a YAML or JSON file stands for. Names are those of the flags, with - or _; mlx-lm's
    lora_parameters is understood. Raises InputError."""
    from ..files.json import read_json

    file = Path(path).expanduser()
    values = read_json(file, 1 << 20) if file.suffix.lower() == ".json" else _yaml(file)
    if not isinstance(values, dict):
        raise InputError(f"{path} holds no options by name")
    return [text for name, value in values.items() for text in _arguments(str(name), value, path)]


def _yaml(file: Path) -> Any:
    try:
        import yaml  # huggingface-hub needs it too
    except ImportError:
        raise InputError(f"{file}: YAML needs the package pyyaml; JSON does not") from None
    from ..files.regular import open_regular

    try:
        with open_regular(file) as content:
            return yaml.safe_load(content.read(1 << 20))
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise InputError(f"{file} is not valid YAML: {error}") from None


def _arguments(name: str, value: Any, path: str) -> list[str]:
    flag = f"--{name.replace('_', '-')}"
    if name == "lora_parameters" and isinstance(value, dict):
        known = {"rank": "--lora-rank", "dropout": "--lora-dropout"}
        made = [text for key in known.keys() & value.keys() for text in (known[key], str(value[key]))]
        if "scale" in value:
            made += ["--lora-alpha", str(float(value["scale"]) * float(value.get("rank", 8)))]
        if unknown := value.keys() - {*known, "scale"}:
            raise InputError(f"{path}: lora_parameters has {min(unknown)}, which is not known here")
        return made
    if flag in ("--config", "--resume"):
        raise InputError(f"{path}: {flag} belongs on the command line")
    if value is None:
        return []
    if isinstance(value, bool):
        negative = {"--final-softcap": "--no-final-softcap", "--grad-checkpoint": "--no-grad-checkpoint"}
        return (
            [flag]
            if value and flag != "--final-softcap"
            else [negative[flag]]
            if flag in negative and not value
            else []
        )
    if isinstance(value, dict):
        raise InputError(f"{path}: {name} holds names and values, where one value is expected")
    if isinstance(value, list) and name == "mix":
        return [text for one in value for text in (flag, str(one))]
    return [f"{flag}={','.join(map(str, value)) if isinstance(value, list) else value}"]
