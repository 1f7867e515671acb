"""What threads do while the model works: a timeline, and the time for a folder of large pictures with and without them.

    python -m benchmarks.overlap docs/pictures/overlap.png [--pictures 16] [--rounds 3] [--batch-size 4] [--model M]

Scenes of the demo are written as JPEGs of some 3 million pixels and answered by the same loop in both ways, which take
turns. Without threads each picture is read when the model has a place for it. The timeline is that of the quickest
rounds.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any, cast

from PIL import Image, ImageDraw

import pg_mlx
from pg_mlx import timeline
from pg_mlx.demo import CHECKPOINT
from pg_mlx.generation import Request, SamplingOptions, Scheduler, make_request
from pg_mlx.threads import LOOK_AHEAD, THREADS, Prefetch, run_into

PROMPT = "detect red circle ; blue square ; green star"
COLORS = {"picture": "#4c78a8", "vision": "#f58518", "prefill": "#54a24b", "decode": "#b279a2"}
SCALE = 7.8  # of a scene of 256 x 192


class Inline(Prefetch[Request]):
    """As Prefetch, but nothing runs ahead: the thread that asks does the work."""

    def __init__(self, functions: Sequence[Callable[[], Request]]):
        super().__init__(functions, threads=0, limit=1)

    def __next__(self) -> Future[Request]:
        if not self.exhausted:
            run_into(*cast(tuple, self._queued.get()))
        return super().__next__()


def write_pictures(folder: Path, count: int) -> list[Path]:
    from demo.scenes import TEST_SEEDS, make_scene

    paths = [folder / f"{number:04}.jpg" for number in range(count)]
    for path, seed in zip(paths, TEST_SEEDS, strict=False):
        make_scene(seed, SCALE).image.save(path, quality=92)
    return paths


def run(model: Any, processor: Any, paths: list[Path], batch_size: int, threads: bool) -> list[timeline.Span]:
    """Answer about all pictures; returns the spans, and last one named "all"."""

    def request(path: Path) -> Request:
        return make_request(processor, PROMPT, path, SamplingOptions(max_tokens=64))

    functions = [partial(request, path) for path in paths]
    spans: list[timeline.Span] = []
    timeline.record(spans)
    try:
        with timeline.timed("all"):
            requests = Prefetch(functions) if threads else Inline(functions)
            for _, step in Scheduler(model, processor, requests, batch_size):
                if isinstance(step, Exception):
                    raise step
    finally:
        timeline.record(None)
    return spans


def draw(panels: dict[str, list[timeline.Span]]) -> Image.Image:
    """Draw the panels on one scale, each with a lane for the model's thread and one for each thread that reads
    pictures."""
    left, width, lane, gap = 150, 1000, 18, 26
    longest = max(spans[-1].stop - spans[-1].start for spans in panels.values())
    lanes = {
        title: list(dict.fromkeys([spans[-1].thread, *(s.thread for s in spans)])) for title, spans in panels.items()
    }
    height = sum(gap + lane * len(threads) for threads in lanes.values()) + 2 * gap
    image = Image.new("RGB", (left + width + 20, height), "white")
    pen = ImageDraw.Draw(image)
    y = 4
    for title, spans in panels.items():
        begin, end = spans[-1].start, spans[-1].stop
        pen.text((6, y + 6), f"{title}: {end - begin:.2f} s", fill="black")
        y += gap
        for number, thread in enumerate(lanes[title]):
            pen.text((6, y + 3), f"thread {number}" if number else "the model's thread", fill="black")
            pen.rectangle((left, y + 1, left + width, y + lane - 2), fill="#f2f2f2")
            for span in spans[:-1]:
                if span.thread == thread:
                    x0, x1 = ((t - begin) / longest * width for t in (span.start, span.stop))
                    pen.rectangle((left + x0, y + 1, left + max(x0 + 1, x1), y + lane - 2), fill=COLORS[span.name])
            y += lane
    x = left
    for name, color in COLORS.items():
        pen.rectangle((x, y + 12, x + 12, y + 24), fill=color)
        pen.text((x + 18, y + 12), name, fill="black")
        x += 110
    return image


def busy(spans: list[timeline.Span], name: str) -> float:
    return sum(span.stop - span.start for span in spans if span.name == name)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default=CHECKPOINT)
    parser.add_argument("--pictures", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()

    start = time.perf_counter()
    model, processor = pg_mlx.load(args.model)
    print(f"load {time.perf_counter() - start:.2f} s; {THREADS} threads, {LOOK_AHEAD} pictures ahead")
    best: dict[str, list[timeline.Span]] = {}
    with tempfile.TemporaryDirectory() as folder:
        paths = write_pictures(Path(folder), args.pictures)
        for _ in range(args.rounds):
            for title, threads in (("one after the other", False), ("overlapped", True)):
                spans = run(model, processor, paths, args.batch_size, threads)
                if title not in best or busy(spans, "all") < busy(best[title], "all"):
                    best[title] = spans
    print("| | s | picture | vision | prefill | decode |\n|---|--:|--:|--:|--:|--:|")
    for title, spans in best.items():
        print(f"| {title} | " + " | ".join(f"{busy(spans, name):.2f}" for name in ("all", *COLORS)) + " |")
    draw(best).save(args.out, optimize=True)


if __name__ == "__main__":
    main()
