"""pg-mlx generate: ask about pictures."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace

from ..errors import InputError
from ..limits import MAX_BATCH_SIZE
from ..threads import start
from .drawings import Drawings
from .hints import chat_hint
from .options import Parser, add_model_options, bounded
from .pictures import expand, is_folder
from .report import Report
from .session import Session
from .writers import FORMATS, Failure, Success, answer_all, output

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
  %(prog)s --model ./pg2-4bit --image cat.jpg --prompt "caption en" --prompt "detect cat"

exit code: 0, 1 if the model or one of several pictures failed, 2 for a wrong input, 130 after Ctrl-C.
"""


def parser(program: str) -> argparse.ArgumentParser:
    """The options of `generate`."""
    p = Parser(program, DESCRIPTION, EPILOG)
    add_model_options(p)
    p.add_argument("--image", action="append", metavar="I", help="file, folder, URL, or - for stdin; repeatable")
    p.add_argument(
        "--prompt",
        action="append",
        metavar="P",
        help="the task text, or - for stdin (default: empty); repeatable, all are asked about every picture",
    )
    p.add_argument("--max-tokens", type=int, default=256, metavar="N", help="longest answer (default: 256)")
    p.add_argument("--temp", "--temperature", type=float, default=0.0, metavar="T", help="0 (default) is greedy")
    p.add_argument("--top-p", type=float, default=1.0, metavar="P", help="sample from the likeliest P of the mass")
    p.add_argument("--top-k", type=int, default=0, metavar="K", help="sample from the K likeliest tokens (0: all)")
    p.add_argument("--min-p", type=float, default=0.0, metavar="P", help="drop tokens below P times the likeliest")
    p.add_argument(
        "--batch-size",
        type=bounded(1, MAX_BATCH_SIZE),
        metavar="N",
        help="pictures answered at a time (default: 8; at 896 px 2)",
    )
    p.add_argument("--seed", type=int, metavar="S", help="makes sampling repeatable")
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
    """Answer, print, and return the exit code. Raises PgMlxError, which is InputError for a wrong input."""
    args = parser(program).parse_args(argv)
    prompts = _read_prompts(args.prompt or [""], args.image or [])
    items = expand(args.image, prompts)
    many = len(args.image) > 1 or is_folder(args.image[0])
    several = many or len(prompts) > 1
    for hint in dict.fromkeys(filter(None, map(chat_hint, prompts))):
        print(hint, file=sys.stderr)

    # What is cheap to get wrong is checked before anything large is loaded.
    from ..processor import plain_prompt
    from ..regions.prompt import RegionPrompt
    from ..regions.select import RegionFilter

    kept = RegionFilter(args.min_score, args.dedup_iou, args.max_regions)
    for prompt in prompts if args.constrain else ():
        RegionPrompt.required(plain_prompt(prompt))
    first = None if several else start(items[0].load)
    drawings = Drawings(args.annotate, args.masks, args.soft_masks, items, several)
    out = output(args.format, items, prompts, many)
    if first:
        import mlx.core  # noqa: F401  # takes as long as reading a picture does

        items = [replace(items[0], image=first.result())]
    stop: list[int] = []

    report = Report(program, items, prompts, args.max_tokens)
    try:
        for outcome in answer_all(items, Session(args, items, kept, stop), out):
            if isinstance(outcome, Failure):
                if args.debug or not several:
                    raise outcome.error
                report.failure(outcome)
                continue
            generation = replace(outcome.generation, regions=kept.select(outcome.generation.regions))
            answer = Success(outcome.item, generation)
            out.add(answer)
            report.answer(answer)
            drawings.add(answer)
            if args.format == "text" and (args.verbose or not several):
                report.summary(generation.stats)
            if generation.finish_reason == "cancelled":
                break
    except BaseException:
        if report.answered:  # what is answered is printed, whatever fails then
            out.close()
            report.close()
        raise
    if stop and not several and not report.answered:
        raise KeyboardInterrupt
    out.close()
    drawings.close()
    report.close()
    return 130 if stop else int(report.failed > 0)


def _read_prompts(prompts: list[str], images: list[str]) -> list[str]:
    if "-" not in prompts:
        return prompts
    if "-" in images:
        raise InputError("--image and --prompt cannot both be read from stdin")
    if prompts.count("-") > 1:
        raise InputError("stdin holds one prompt, but --prompt - was given more than once")
    read = sys.stdin.read().removesuffix("\n")  # the one that echo or an editor added
    return [read if prompt == "-" else prompt for prompt in prompts]
