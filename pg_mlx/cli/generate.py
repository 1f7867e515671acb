"""pg-mlx generate: ask about pictures."""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import replace
from functools import partial

from ..errors import InputError
from ..threads import start
from .drawings import Drawings
from .hints import chat_hint
from .options import Parser, add_answer_options, add_model_options, add_region_options, bounded
from .pictures import Item, expand, is_folder
from .ranks import add_parallel_options, with_ranks
from .report import RunReport
from .session import Session
from .writers import FORMATS, Failure, Success, View, answer_all, output

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
  %(prog)s --model ./pg2-4bit --image photos --prompt "detect cat ; dog" --report found.html
  %(prog)s --model ./pg2-4bit --image cat.jpg --prompt "detect cat" --show
  %(prog)s --model ./pg2-4bit --image cat.jpg --prompt "caption en" --prompt "detect cat"
  %(prog)s --model ./pg2-4bit --image before.jpg after.jpg --together --prompt "answer en what has changed?"
  %(prog)s --model ./pg2-4bit --image scan.tif --page all --prompt ocr
  %(prog)s --model ./pg2-4bit --image cat.jpg --region 40,30,220,180 --prompt "caption"

exit code: 0, 1 if the model or one of several pictures failed, 2 for a wrong input, 130 after Ctrl-C.
"""


def parser(program: str) -> argparse.ArgumentParser:
    """The options of `generate`."""
    p = Parser(program, DESCRIPTION, EPILOG)
    add_model_options(p)
    p.add_argument(
        *("-i", "--image"),
        action="extend",
        nargs="+",
        metavar="I",
        help="files, folders, URLs, or - for stdin; repeatable",
    )
    p.add_argument(
        *("-p", "--prompt"),
        action="append",
        metavar="P",
        help="the task text, or - for stdin; repeatable, all are asked about every picture",
    )
    p.add_argument(
        *("--page", "--frames"),
        type=_page,
        metavar="N",
        help="of a TIFF or an animation this page or frame, from 1; all: an answer for each",
    )
    p.add_argument("--together", action="store_true", help="ask about all pictures at once: one answer a prompt")
    add_answer_options(p)
    p.add_argument(
        "--logprobs",
        type=bounded(0, 20),
        metavar="N",
        help="json and jsonl: the log-probability of each token, and of the N likeliest in its place",
    )
    p.add_argument(
        "--format",
        choices=FORMATS,
        default="text",
        help="json: one object, for several pictures a list; jsonl: an object a line, as they come; "
        "coco: a COCO results file",
    )
    regions = p.add_argument_group("boxes and masks")
    regions.add_argument(
        "--region",
        type=_region,
        metavar="X0,Y0,X1,Y1",
        help="ask about this place, in pixels: its <loc> tokens are put behind the prompt, or in place of {region}",
    )
    regions.add_argument("--raw", action="store_true", help="print the model's tokens on a terminal, too")
    regions.add_argument("--annotate", metavar="OUT", help="draw them: a .png or .jpg, for several pictures a folder")
    regions.add_argument(
        "--show",
        action="store_true",
        help="show the drawn picture in the terminal if it can (iTerm2, kitty, sixel), else in a window",
    )
    regions.add_argument(
        "--report", metavar="OUT.html", help="write all answers with their pictures to one page, to look through"
    )
    regions.add_argument("--masks", metavar="DIR", help="write each mask as a PNG of the picture's size")
    regions.add_argument("--soft-masks", action="store_true", help="those in 65536 shades, not in black and white")
    add_region_options(regions)
    add_parallel_options(p)
    p.add_argument(
        "--verbose",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="say more about the model and the machine on stderr",
    )
    p.add_argument("--debug", action="store_true", help="show tracebacks")
    return p


def run(argv: list[str], program: str) -> int:
    """Answer, print, and return the exit code. Raises PgMlxError, which is InputError for a wrong input."""
    args = parser(program).parse_args(argv)
    return with_ranks(args, partial(_answer, args, program))


def _answer(args: argparse.Namespace, program: str) -> int:
    if args.logprobs is not None and args.format not in ("json", "jsonl"):
        raise InputError("--logprobs needs --format json or jsonl, which can show them")
    if args.region and args.constrain:
        raise InputError("--region does not go with --constrain: a detect or segment prompt has no place in it")
    expand(args.image, ("",))  # before a prompt is asked for
    prompts = _read_prompts(args.prompt, args.image)
    items = expand(args.image, prompts, args.together, args.page)
    many = not args.together and (len(args.image) > 1 or is_folder(args.image[0]) or args.page == "all")
    several = many or len(prompts) > 1
    for hint in dict.fromkeys(filter(None, map(chat_hint, prompts))):
        print(hint, file=sys.stderr)

    # What is cheap to get wrong is checked before anything large is loaded.
    from ..processor import plain_prompt
    from ..processor.notes import print_as_lines
    from ..regions.prompt import RegionPrompt
    from ..regions.select import RegionFilter

    print_as_lines()
    kept = RegionFilter(args.min_score, args.dedup_iou, args.max_regions)
    for prompt in prompts if args.constrain else ():
        RegionPrompt.required(plain_prompt(prompt))
    first = None if several else start(items[0].load)
    views = _views(args, prompts, items, several)
    out = output(args.format, items, prompts, many, args.raw)
    if first:
        import mlx.core  # noqa: F401  # takes as long as reading a picture does

        items = [replace(items[0], image=first.result())]
    stop: list[int] = []

    report = RunReport(program, items, prompts, args.max_tokens)
    try:
        for outcome in answer_all(items, Session(args, items, kept, stop), out):
            if isinstance(outcome, Failure):
                if args.debug or not several:
                    raise outcome.error
                report.failure(outcome)
                for view in views:
                    view.failure(outcome)
                continue
            generation = replace(outcome.generation, regions=kept.select(outcome.generation.regions))
            if args.logprobs is None:  # scores alone were wanted
                generation = replace(generation, logprobs=None)
            answer = Success(outcome.item, generation)
            out.add(answer)
            report.answer(answer)
            for view in views:
                view.add(answer)
            if args.format == "text" and (args.verbose or not several):
                report.summary(generation.stats)
            if generation.finish_reason == "cancelled":
                break
    except BaseException:
        for view in views:
            view.abort()
        if report.answered or args.format == "text":  # what is answered is printed, and an unfinished line ended
            out.close()
        if report.answered:
            report.close(broken_off=True)
        raise
    if stop and not several and not report.answered:
        raise KeyboardInterrupt
    try:
        out.close()
        for view in views:
            view.close()
    except BaseException:
        for view in views:
            view.abort()
        raise
    report.close()
    return 130 if stop else int(report.failed > 0)


def _views(args: argparse.Namespace, prompts: list[str], items: list[Item], several: bool) -> list[View]:
    """What makes pictures of the answers. Raises InputError for a target that cannot be meant."""
    views: list[View] = [Drawings(args.annotate, args.masks, args.soft_masks, items, several)]
    if args.report:
        from .gallery import Gallery

        views.append(Gallery(args.report, prompts, len(items)))
    if args.show:
        from .show import Show

        views.append(Show())
    return views


def _page(text: str) -> int | str:
    """An argparse type: a page's number from 1, or "all"."""
    if text == "all":
        return text
    if not re.fullmatch("[0-9]{1,9}", text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a page's number, from 1, nor all")
    return int(text)


def _region(text: str) -> list[float]:
    """An argparse type: x0,y0,x1,y1, with the corners in this order."""
    from ..regions import format_region

    try:
        x0, y0, x1, y1 = map(float, text.replace(",", " ").split())
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not x0,y0,x1,y1 in pixels") from None
    try:
        format_region((x0, y0, x1, y1), (1, 1))
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return [x0, y0, x1, y1]


def _read_prompts(prompts: list[str] | None, images: list[str]) -> list[str]:
    if prompts is None:
        return [_ask_for_prompt(images)]
    if "-" not in prompts:
        return prompts
    if "-" in images:
        raise InputError("--image and --prompt cannot both be read from stdin")
    if prompts.count("-") > 1:
        raise InputError("stdin holds one prompt, but --prompt - was given more than once")
    if sys.stdin is None:
        raise InputError("--prompt - reads the prompt from stdin, which is closed")
    # A newline that echo or an editor added, and the mark with which some Windows programs begin a file.
    read = sys.stdin.read().removeprefix("\ufeff").replace("\r\n", "\n").removesuffix("\n")
    return [read if prompt == "-" else prompt for prompt in prompts]


def _ask_for_prompt(images: list[str]) -> str:
    """One line from the terminal, if there is one. Raises InputError otherwise: an empty prompt is seldom meant."""
    missing = 'no prompt was given: --prompt "caption en", or another task (--help lists them)'
    if sys.stdin is None or not sys.stdin.isatty() or "-" in images:
        raise InputError(f'{missing}; --prompt "" asks with an empty one')
    print("prompt (such as: caption en): ", end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    if not line.strip():
        raise InputError(missing)
    return line.removesuffix("\n")
