"""pg-mlx generate: ask about a picture."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from ..errors import InputError
from .common import Parser, load_progress
from .hints import chat_hint

if TYPE_CHECKING:
    from ..generation import Stats

DESCRIPTION = "Ask PaliGemma about a picture. The answer streams to stdout, timings go to stderr."

EPILOG = """\
prompts PaliGemma was trained on (a newline is added for you):
  caption en                      a short caption, in any language code
  describe en                     a longer one
  ocr                             the text in the picture
  answer en what colour is it?    a question
  detect cat ; dog                boxes, as <loc> tokens: y0 x0 y1 x1 of 1023
  segment cat                     a box and a mask, as <loc> and <seg> tokens

examples:
  %(prog)s --model google/paligemma2-3b-mix-448 --image cat.jpg --prompt "caption en"
  %(prog)s --model ./pg2-4bit --image https://example.com/cat.jpg --prompt "detect cat"
  cat photo.png | %(prog)s --model ./pg2-4bit --image - --prompt ocr --format json
"""


def parser(program: str) -> argparse.ArgumentParser:
    p = Parser(program, DESCRIPTION, EPILOG)
    p.add_argument("--model", required=True, metavar="M", help="checkpoint folder, or hub repository owner/name")
    p.add_argument("--revision", metavar="R", help="branch, tag or commit of a hub repository")
    p.add_argument(
        "--adapter-path",
        action="append",
        metavar="A",
        help="folder of a LoRA adapter from PEFT or mlx-vlm (repeatable, applied in order)",
    )
    p.add_argument("--image", action="append", metavar="I", help="file, URL, or - for stdin")
    p.add_argument("--prompt", default="", metavar="P", help="the task text, or - for stdin (default: empty)")
    p.add_argument("--max-tokens", type=int, default=256, metavar="N", help="longest answer (default: 256)")
    p.add_argument("--temp", "--temperature", type=float, default=0.0, metavar="T", help="0 (default) is greedy")
    p.add_argument("--top-p", type=float, default=1.0, metavar="P", help="sample from the likeliest P of the mass")
    p.add_argument("--top-k", type=int, default=0, metavar="K", help="sample from the K likeliest tokens (0: all)")
    p.add_argument("--min-p", type=float, default=0.0, metavar="P", help="drop tokens below P times the likeliest")
    p.add_argument("--seed", type=int, metavar="S", help="makes sampling repeatable")
    p.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="of activations and cache (default: bfloat16 on a GPU, float32 on a CPU)",
    )
    p.add_argument(
        "--sliding-window",
        action="store_true",
        help="run Gemma 2's sliding-window layers as transformers does; the original code, and so the default, "
        "has none (differs beyond 4096 tokens)",
    )
    p.add_argument("--format", choices=("text", "json"), default="text", help="json: one object with statistics")
    p.add_argument("--verbose", action="store_true", help="say more about the model and the machine on stderr")
    p.add_argument("--debug", action="store_true", help="show tracebacks")
    return p


def run(argv: list[str], program: str) -> int:
    args = parser(program).parse_args(argv)
    picture = _only_picture(args.image)
    prompt = args.prompt
    if prompt == "-":
        if picture == "-":
            raise InputError("--image and --prompt cannot both be read from stdin")
        prompt = sys.stdin.read().removesuffix("\n")  # the one that echo or an editor added
    if hint := chat_hint(prompt):
        print(hint, file=sys.stderr)

    # What is cheap to get wrong is checked before anything large is loaded.
    from ..processor.images import load_image

    image = load_image(picture)
    if args.format == "text":
        sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]

    import mlx.core as mx

    from ..backend import on_gpu
    from ..checkpoint.load import load
    from ..generation import SamplingOptions, stream_generate

    options = SamplingOptions(args.max_tokens, args.temp, args.top_p, args.top_k, args.min_p, args.seed)
    if not on_gpu():
        mx.disable_compile()  # for the CPU it starts a C++ compiler, longer than most answers take

    progress, done = load_progress()
    model, processor = load(
        args.model,
        dtype=args.dtype,
        adapter_path=args.adapter_path,
        revision=args.revision,
        use_sliding_window=args.sliding_window,
        progress=progress,
    )
    done()
    if args.verbose:
        text, vision = model.config.text, model.config.vision
        print(
            f"{text.model_type}, {text.num_hidden_layers} layers of {text.hidden_size}; {vision.image_size} px, "
            f"{vision.num_patches} image tokens; computing in {str(model.dtype).removeprefix('mlx.core.')} "
            f"on the {'GPU' if on_gpu() else 'CPU'}",
            file=sys.stderr,
        )

    stop = _stop_on_interrupt()
    for step in stream_generate(model, processor, prompt, image, cancelled=lambda: bool(stop), **asdict(options)):
        if args.format == "text":
            print(step.text, end="", flush=True)
    generation = step.generation
    assert generation is not None  # the last step carries it
    if args.format == "json":
        print(json.dumps(asdict(generation)))
    else:
        print(flush=True)
        print(summary(generation.stats), file=sys.stderr)
    return 130 if generation.finish_reason == "cancelled" else 0


def _only_picture(images: list[str] | None) -> str:
    if not images:
        raise InputError("no picture was given: --image FILE, URL or - (--help explains)")
    if len(images) > 1:
        raise InputError(f"--image was given {len(images)} times; this version answers about one picture a call")
    return images[0]


def _stop_on_interrupt() -> list[int]:
    """A list that the first Ctrl-C fills, for the answer to end between two tokens; the second one interrupts."""
    pressed: list[int] = []

    def note(number: int, frame: object) -> None:
        pressed.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    signal.signal(signal.SIGINT, note)
    return pressed


def summary(stats: Stats) -> str:
    """One line: how long each stage took."""
    parts = [
        f"load {stats.load_s:.2f} s",
        f"vision {stats.vision_s:.2f} s",
        f"prefill {stats.prefill_s:.2f} s ({stats.prompt_tokens} tokens, {stats.prefill_tps:.0f}/s)",
        f"first token {stats.time_to_first_token_s:.2f} s",
    ]
    if stats.decode_tokens > 1:
        parts.append(f"{stats.decode_tokens} tokens at {stats.decode_tps:.1f}/s")
    return " | ".join([*parts, f"peak {stats.peak_memory_bytes / 1e9:.2f} GB"])
