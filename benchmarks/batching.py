"""Pictures per second, one at a time and in batches, and whether the answers are the same.

    python -m benchmarks.batching [FOLDER] [--model M] [--pictures 32] [--batch-sizes 1 8] [--rounds 5] [--prompt P ...]

FOLDER: a folder of pictures; scenes of the demo if not given. Batch sizes take turns within a round, so that other
work on the machine slows all of them. The time includes reading pictures, but not loading the model. It is the least of
all rounds. CPU seconds are of all threads; they say more than the clock on a machine that others use too.
"""

from __future__ import annotations

import argparse
import time
from typing import Any, NamedTuple

import pg_mlx
from pg_mlx.cli.pictures import expand
from pg_mlx.demo import CHECKPOINT

PROMPTS = ("detect red circle ; blue square ; green star", "caption en", "answer en how many shapes are there?")


class Timing(NamedTuple):
    wall_s: float
    cpu_s: float


def pictures(folder: str | None, count: int) -> list[Any]:
    if folder is not None:
        return [picture.source for picture in expand([folder])][:count]
    from demo.scenes import TEST_SEEDS, make_scene

    return [make_scene(seed).image for seed in TEST_SEEDS[:count]]


def timed(model: Any, processor: Any, prompt: str, images: list[Any], size: int) -> tuple[Timing, list[list[int]]]:
    wall, cpu = time.perf_counter(), time.process_time()
    answers = pg_mlx.batch_generate(model, processor, prompt, images, batch_size=size, max_tokens=128)
    return Timing(time.perf_counter() - wall, time.process_time() - cpu), [answer.token_ids for answer in answers]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--model", default=CHECKPOINT)
    parser.add_argument("--dtype")
    parser.add_argument("--pictures", type=int, default=32)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt", action="append")
    args = parser.parse_args()

    model, processor = pg_mlx.load(args.model, dtype=args.dtype)
    images = pictures(args.folder, args.pictures)
    print("| prompt | tokens a picture | batch | pictures/s | CPU s a picture | ratio | CPU ratio | tokens equal |")
    print("|---|--:|--:|--:|--:|--:|--:|---|")
    for prompt in args.prompt or PROMPTS:
        timed(model, processor, prompt, images[: max(args.batch_sizes)], max(args.batch_sizes))
        best: dict[int, Timing] = {}
        tokens: dict[int, list[list[int]]] = {}
        for _ in range(args.rounds):
            for size in args.batch_sizes:
                new, tokens[size] = timed(model, processor, prompt, images, size)
                old = best.get(size, new)
                best[size] = Timing(min(new.wall_s, old.wall_s), min(new.cpu_s, old.cpu_s))
        first = args.batch_sizes[0]
        mean = sum(map(len, tokens[first])) / len(images)
        for size in args.batch_sizes:
            wall, cpu = best[size]
            ratios = f"{best[first].wall_s / wall:.2f} | {best[first].cpu_s / cpu:.2f}"
            equal = "yes" if tokens[size] == tokens[first] else "no"
            rates = f"{len(images) / wall:.1f} | {cpu / len(images):.4f}"
            print(f"| {prompt} | {mean:.1f} | {size} | {rates} | {ratios} | {equal} |", flush=True)


if __name__ == "__main__":
    main()
