"""pg-mlx generate: ask about pictures."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from ..errors import InputError
from .answers import FORMATS, Failure, Output, answer_all, describe, output
from .common import Parser, load_progress
from .drawings import Drawings
from .hints import chat_hint
from .pictures import Picture, expand, is_folder

if TYPE_CHECKING:
    from PIL import Image

    from ..generation import Generation, Stats

DESCRIPTION = "Ask PaliGemma about pictures. Answers go to stdout, timings and failures to stderr."

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
  %(prog)s --model ./pg2-4bit --image cat.jpg --prompt "segment cat" --annotate out.png --masks masks
  %(prog)s --model ./pg2-4bit --image photos --prompt "detect cat ; dog" --format jsonl > found.jsonl

exit code: 0, 1 if the model or one of several pictures failed, 2 for a wrong input, 130 after Ctrl-C.
"""


def parser(program: str) -> argparse.ArgumentParser:
    p = Parser(program, DESCRIPTION, EPILOG)
    p.add_argument(
        "--model", metavar="M", help="checkpoint folder, or hub repository owner/name (default: the bundled demo)"
    )
    p.add_argument("--revision", metavar="R", help="branch, tag or commit of a hub repository")
    p.add_argument(
        "--adapter-path",
        action="append",
        metavar="A",
        help="folder of a LoRA adapter from PEFT or mlx-vlm (repeatable, applied in order)",
    )
    p.add_argument("--image", action="append", metavar="I", help="file, folder, URL, or - for stdin; repeatable")
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
    p.add_argument(
        "--format",
        choices=FORMATS,
        default="text",
        help="json: one object, for several pictures a list; jsonl: an object a line, as they come; "
        "coco: a COCO results file",
    )
    regions = p.add_argument_group("boxes and masks")
    regions.add_argument("--annotate", metavar="OUT", help="draw them: a .png or .jpg, for several pictures a folder")
    regions.add_argument("--masks", metavar="DIR", help="write each mask as a PNG of the picture's size")
    regions.add_argument("--soft-masks", action="store_true", help="those in 65536 shades, not in black and white")
    regions.add_argument(
        "--mask-decoder",
        metavar="FILE",
        help="vae-oid.npz, or what convert made of it (default: the model's own, else fetched from the hub once)",
    )
    regions.add_argument(
        "--constrain",
        action="store_true",
        help="detect and segment: let the answer be records with labels out of the prompt and nothing else, in fewer "
        "steps",
    )
    regions.add_argument("--max-regions", type=int, metavar="N", help="keep the N best")
    regions.add_argument(
        "--dedup-iou", type=float, metavar="T", help="keep one of boxes with one label that overlap by T (0..1) or more"
    )
    regions.add_argument(
        "--min-score", type=float, metavar="S", help="compute scores (0..1) and drop what has less (0 drops nothing)"
    )
    p.add_argument("--verbose", action="store_true", help="say more about the model and the machine on stderr")
    p.add_argument("--debug", action="store_true", help="show tracebacks")
    return p


def run(argv: list[str], program: str) -> int:
    args = parser(program).parse_args(argv)
    pictures = expand(args.image)
    many = len(args.image) > 1 or is_folder(args.image[0])
    prompt = _read_prompt(args.prompt, pictures)
    if hint := chat_hint(prompt):
        print(hint, file=sys.stderr)

    # What is cheap to get wrong is checked before anything large is loaded.
    from ..processor import plain_prompt
    from ..regions.prompt import RegionPrompt
    from ..regions.select import select

    narrow = dict(max_regions=args.max_regions, dedup_iou=args.dedup_iou, min_score=args.min_score)
    select([], **narrow)
    if args.constrain:
        RegionPrompt.required(plain_prompt(prompt))
    if not many:
        pictures = [replace(pictures[0], image=pictures[0].load())]
    drawings = Drawings(args.annotate, args.masks, args.soft_masks, pictures, many)
    out = output(args.format, pictures, prompt, many)
    stop: list[int] = []
    ask = _asker(args, prompt, out, stop)

    failures = 0
    for outcome in answer_all(pictures, ask):
        if isinstance(outcome, Failure):
            if args.debug or not many:
                raise outcome.error
            print(f"{program}: {describe(outcome)}", file=sys.stderr)
            failures += 1
            continue
        generation = replace(outcome.generation, regions=select(outcome.generation.regions, **narrow))
        answer = replace(outcome, generation=generation)
        drawings.add(answer)
        out.add(answer)
        if args.format == "text" and (args.verbose or not many):
            print(summary(generation.stats), file=sys.stderr)
        if generation.finish_reason == "cancelled":
            break
    out.close()
    drawings.close()
    if failures:
        print(f"{failures} of {len(pictures)} pictures failed", file=sys.stderr)
    return 130 if stop else int(failures > 0)


def _read_prompt(prompt: str, pictures: list[Picture]) -> str:
    if prompt != "-":
        return prompt
    if any(picture.source == "-" for picture in pictures):
        raise InputError("--image and --prompt cannot both be read from stdin")
    return sys.stdin.read().removesuffix("\n")  # the one that echo or an editor added


def _asker(
    args: argparse.Namespace, prompt: str, out: Output, stop: list[int]
) -> Callable[[Picture, Image.Image], Generation]:
    """Loads the model; what it returns asks about one picture and streams the answer to `out`."""
    import mlx.core as mx

    from ..backend import on_gpu
    from ..checkpoint.load import load
    from ..demo import CHECKPOINT
    from ..generation import SamplingOptions, stream_generate

    options = SamplingOptions(args.max_tokens, args.temp, args.top_p, args.top_k, args.min_p, args.seed)
    if not on_gpu():
        mx.disable_compile()  # for the CPU it starts a C++ compiler, longer than most answers take

    if args.model is None:
        print("no --model: the bundled demo answers, which knows only coloured shapes and short words", file=sys.stderr)
    progress, done = load_progress()
    model, processor = load(
        args.model or CHECKPOINT,
        dtype=args.dtype,
        adapter_path=args.adapter_path,
        revision=args.revision,
        use_sliding_window=args.sliding_window,
        mask_decoder=args.mask_decoder,
        progress=progress,
    )
    done()
    processor.prompt_ids(prompt)  # or a bad one would be the fault of every picture
    if args.verbose:
        text, vision = model.config.text, model.config.vision
        print(
            f"{text.model_type}, {text.num_hidden_layers} layers of {text.hidden_size}; {vision.image_size} px, "
            f"{vision.num_patches} image tokens; computing in {str(model.dtype).removeprefix('mlx.core.')} "
            f"on the {'GPU' if on_gpu() else 'CPU'}",
            file=sys.stderr,
        )
    _note_interrupts(stop)
    scores = args.min_score is not None or args.format == "coco"
    # Where nothing but their order decides which regions are kept, the answer may end with the last of them.
    first = args.max_regions if args.constrain and not scores and args.dedup_iou is None else None

    def ask(picture: Picture, image: Image.Image) -> Generation:
        out.begin(picture)
        steps = stream_generate(
            model,
            processor,
            prompt,
            image,
            cancelled=lambda: bool(stop),
            logprobs=scores,
            constrain=args.constrain,
            max_regions=first,
            **asdict(options),
        )
        for step in steps:
            out.token(step.text)
        assert step.generation is not None  # the last step carries it
        return step.generation

    return ask


def _note_interrupts(pressed: list[int]) -> None:
    """The first Ctrl-C fills the list, for the answer to end between two tokens; the second one interrupts."""

    def note(number: int, frame: object) -> None:
        pressed.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    signal.signal(signal.SIGINT, note)


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
