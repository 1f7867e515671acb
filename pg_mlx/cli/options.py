"""What the commands share: parsing, the options of the model, the progress of loading."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

from ..errors import InputError, UsageError
from ..limits import MAX_BATCH_SIZE
from ..memory.size import parse_size
from ..ops import blas
from .progress import WorkProgress

if TYPE_CHECKING:
    from ..checkpoint.load import LoadOptions


class Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are one line, and which never guesses abbreviated flags."""

    def __init__(self, program: str, description: str, epilog: str):
        super().__init__(
            prog=program,
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """Raises UsageError, so that it ends like every other wrong input."""
        raise UsageError(f"{message} (--help explains)")


def bounded(low: float, high: float, number: type[int] | type[float] = int) -> Callable[[str], int | float]:
    """An argparse type: a number from low to high, both included."""

    def parse(text: str) -> int | float:
        try:
            value = number(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a {'whole ' if number is int else ''}number") from None
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is not from {low} to {high}")
        return value

    return parse


def memory_size(text: str) -> int:
    """An argparse type: bytes of a size like "8GB"."""
    try:
        return parse_size(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Which model is loaded, and how: the same for all commands that load one."""
    p = parser.add_argument_group("the model")
    p.add_argument(
        "-m",
        "--model",
        metavar="M",
        help="checkpoint or adapter folder, big_vision .npz, or hub repository owner/name (default: the bundled demo)",
    )
    p.add_argument("--revision", metavar="R", help="branch, tag or commit of a hub repository")
    p.add_argument(
        "--tokenizer", metavar="PATH", help="file, folder or hub repository of the tokenizer, for a model that has none"
    )
    p.add_argument(
        "--adapter-path",
        action="append",
        metavar="A",
        help="folder or hub repository of a LoRA adapter from PEFT or mlx-vlm (repeatable, applied in order)",
    )
    p.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="of activations and cache (default: bfloat16 on a GPU, float32 on a CPU)",
    )
    p.add_argument(
        "--max-memory",
        type=memory_size,
        metavar="SIZE",
        help="as 6GB: refuse a model that needs more, before it is read",
    )
    p.add_argument(
        "--memory",
        type=memory_size,
        metavar="SIZE",
        help="on a Linux CPU: use so much, as 8GB, to hold float32 copies of quantized weights, which answer faster",
    )
    p.add_argument(
        "--layers-at-once",
        type=bounded(1, 1000),
        metavar="N",
        help="let the GPU do other work after every N layers of a picture or prompt (for 896 pixels on small chips)",
    )
    p.add_argument(
        "--sliding-window",
        action="store_true",
        help="run Gemma 2's sliding-window layers as transformers does; the original code, and so the default, "
        "has none (differs beyond 4096 tokens)",
    )
    p.add_argument(
        "--mask-decoder",
        metavar="FILE",
        help="vae-oid.npz, or what convert made of it (default: the model's own, else fetched from the hub once)",
    )


def add_batch_size(p: argparse._ActionsContainer, default: int | None, about: str) -> None:
    """How many answers are computed at a time."""
    p.add_argument("--batch-size", type=bounded(1, MAX_BATCH_SIZE), default=default, metavar="N", help=about)


def add_answer_options(p: argparse._ActionsContainer) -> None:
    """How tokens are chosen and how many answers share a step: the same for generate and batch."""
    add_sampling_options(p)
    add_batch_size(p, None, "pictures answered at a time (default: 8; at 896 px 2)")


def add_sampling_options(p: argparse._ActionsContainer) -> None:
    """How tokens are chosen."""
    p.add_argument("--max-tokens", type=int, default=256, metavar="N", help="longest answer (default: 256)")
    p.add_argument("--temp", "--temperature", type=float, default=0.0, metavar="T", help="0 (default) is greedy")
    p.add_argument("--top-p", type=float, default=1.0, metavar="P", help="sample from the likeliest P of the mass")
    p.add_argument("--top-k", type=int, default=0, metavar="K", help="sample from the K likeliest tokens (0: all)")
    p.add_argument("--min-p", type=float, default=0.0, metavar="P", help="drop tokens below P times the likeliest")
    p.add_argument("--stop", action="append", metavar="S", help="end the answer before this text; repeatable")
    p.add_argument(
        "--repetition-penalty",
        type=float,
        default=1.0,
        metavar="R",
        help="above 1: tokens that were there become less likely (1: off)",
    )
    p.add_argument(
        "--repetition-context-size",
        type=int,
        default=20,
        metavar="N",
        help="among the last N tokens (default: 20; 0: all)",
    )
    p.add_argument(
        "--no-repeat-ngram-size", type=int, default=0, metavar="N", help="no N tokens in a row come twice (0: off)"
    )
    p.add_argument("--seed", type=int, metavar="S", help="makes sampling repeatable")


def add_region_options(p: argparse._ActionsContainer) -> None:
    """Which regions an answer has: the same for generate and batch."""
    p.add_argument(
        "--constrain",
        action="store_true",
        help="detect and segment: the answer has only records with labels out of the prompt, in fewer steps",
    )
    p.add_argument("--max-regions", type=int, metavar="N", help="keep the N best")
    p.add_argument(
        "--dedup-iou",
        type=float,
        metavar="T",
        help="keep one of boxes with the same label that overlap by T or more (0..1)",
    )
    p.add_argument(
        "--min-score", type=float, metavar="S", help="compute scores (0..1) and drop what has less (0 drops nothing)"
    )


def add_service_options(p: argparse._ActionsContainer) -> None:
    """How much a command that answers many requests at a time takes on."""
    add_batch_size(p, 8, "answers computed at a time (default: 8)")
    p.add_argument(
        "--queue", type=bounded(1, 100_000), default=64, metavar="N", help="requests that may wait (default: 64)"
    )
    p.add_argument(
        "--memory-limit", type=memory_size, metavar="SIZE", help="what the model and its answers may take, as 6GB"
    )
    p.add_argument(
        "--max-prefix",
        type=bounded(1, 8192),
        default=8192,
        metavar="N",
        help="image and prompt tokens of one request, which are read in one pass while others wait (default: 8192)",
    )


def load_options(args: argparse.Namespace) -> LoadOptions:
    """What `add_model_options` has read, except which model. Raises InputError for options that exclude each other."""
    if args.dtype == "float32":
        blas.full_float32()
    from ..checkpoint.load import LoadOptions  # and with it MLX

    return LoadOptions(
        dtype=args.dtype,
        adapter_path=args.adapter_path,
        revision=args.revision,
        tokenizer=args.tokenizer,
        max_memory=args.max_memory,
        memory=args.memory,
        layers_at_once=args.layers_at_once,
        use_sliding_window=args.sliding_window,
        mask_decoder=args.mask_decoder,
        team=getattr(args, "team", None),
    )


def load_progress(silent: bool = False) -> WorkProgress:
    """Of loading a model. A small one is there before a bar could be."""
    return WorkProgress("loading", "module", after=0.5, silent=silent)
