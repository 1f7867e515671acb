"""Score a checkpoint folder on test scenes: python -m demo.evaluate FOLDER.

Prints one table: for each task what share of the answers is right, on scenes that training has never seen, with greedy
decoding.

- detect: recall and precision of boxes at IoU 0.5, each predicted box counting once; mean IoU over all true boxes, a
  missed one counting 0.
- segment: mean IoU of masks in the picture's pixels over all true ones, a missed one counting 0.
- answer: exact answers, also by kind of question. ocr: exact text, pictures without text apart.
- caption, describe: answers in which every named shape and colour is there; "complete": and nothing is missing.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import pg_mlx
from demo.scenes import COLORS, SHAPES, TEST_SEEDS, Item, Scene, make_scene
from demo.tasks import TASKS, Question, ask, matches
from pg_mlx.regions.reader import read_answer
from pg_mlx.regions.region import Box
from pg_mlx.regions.select import iou

MAX_TOKENS = 160
"""Tokens of the longest answer."""
NAMES = re.compile(f"({'|'.join(COLORS)}) ({'|'.join(SHAPES)})")


@dataclass
class Case:
    scene: Scene
    question: Question
    text: str = ""
    token_ids: Sequence[int] = ()


def cases(scenes: int, tasks: Sequence[str] = TASKS) -> list[Case]:
    """One question of each task about each of the first `scenes` test scenes."""
    made = []
    for seed in TEST_SEEDS[:scenes]:
        scene, rng = make_scene(seed), np.random.default_rng((seed, 1))
        made += [Case(scene, ask(scene, task, rng, lambda item: [0] * 16)) for task in tasks]
    return made


def labels(question: Question) -> list[str]:
    """What a detect or segment prompt asks for."""
    return question.prompt.split(" ", 1)[1].split(" ; ")


@dataclass
class Scores:
    values: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def add(self, name: str, *values: float) -> None:
        self.values[name] += values

    def means(self) -> dict[str, float]:
        return {name: float(np.mean(values)) if values else float("nan") for name, values in self.values.items()}


def score(done: Sequence[Case], decoder: Any = None) -> Scores:
    """decoder: a pg_mlx.MaskDecoder, without which segmentation is not scored."""
    scores = Scores()
    for case in done:
        question, scene, text = case.question, case.scene, case.text
        match question.task:
            case "detect":
                _score_boxes(case, scores)
            case "segment":
                if decoder is not None:
                    _score_masks(case, decoder, scores)
            case "answer":
                scores.add("answer", text == question.answer)
                scores.add(f"answer: {question.kind}", text == question.answer)
            case "ocr":
                scores.add("ocr" if scene.text else "ocr: no text", text == question.answer)
            case _:
                said, true = Counter(NAMES.findall(text)), Counter((i.color, i.shape) for i in scene.items)
                scores.add(question.task, said <= true and bool(said))
                scores.add(f"{question.task}: complete", said == true)
    return scores


def _score_boxes(case: Case, scores: Scores) -> None:
    regions = pg_mlx.parse_regions(case.text, image_size=case.scene.image.size)
    for label in labels(case.question):
        truth = [item.box for item in case.scene.items if matches(item, label)]
        found = [region.box_normalized for region in regions if region.label == label]
        best = [0.0] * len(truth)
        hits = 0
        for overlap, _, t in _pairs(found, truth):
            best[t] = overlap
            hits += overlap >= 0.5
        scores.add("detect: recall", *(overlap >= 0.5 for overlap in best))
        scores.add("detect: mean IoU", *best)
        scores.add("detect: precision", *[1.0] * hits, *[0.0] * (len(found) - hits))
    strangers = [region for region in regions if region.label not in labels(case.question)]
    scores.add("detect: precision", *[0.0] * len(strangers))


def _pairs(found: Sequence[Box], truth: Sequence[Box]) -> Iterator[tuple[float, int, int]]:
    """(IoU, found index, truth index), the best pair first, each index at most once."""
    every = sorted(((iou(f, t), i, j) for i, f in enumerate(found) for j, t in enumerate(truth)), reverse=True)
    used_found, used_truth = set[int](), set[int]()
    for overlap, i, j in every:
        if overlap > 0 and i not in used_found and j not in used_truth:
            used_found.add(i)
            used_truth.add(j)
            yield overlap, i, j


def _score_masks(case: Case, decoder: Any, scores: Scores) -> None:
    regions, _ = read_answer(case.text, case.scene.image.size, decoder)
    (label,) = labels(case.question)
    truth: list[Item] = [item for item in case.scene.items if matches(item, label)]
    best = [0.0] * len(truth)
    found = [region for region in regions if region.mask is not None]
    for _, f, t in _pairs([region.box_normalized for region in found], [item.box for item in truth]):
        mask = found[f].mask
        best[t] = (mask & truth[t].mask).sum() / (mask | truth[t].mask).sum()
    scores.add("segment: mean IoU", *best)


def answer(model: Any, processor: Any, todo: Sequence[Case], batch_size: int) -> None:
    """Fill in the cases' texts, greedily."""
    from tqdm import tqdm

    with tqdm(total=len(todo), unit="answer", disable=not sys.stderr.isatty(), file=sys.stderr) as bar:
        for start in range(0, len(todo), 8 * batch_size):
            part = todo[start : start + 8 * batch_size]
            prompts, images = [c.question.prompt for c in part], [c.scene.image for c in part]
            answers = pg_mlx.batch_generate(
                model, processor, prompts, images, batch_size=batch_size, max_tokens=MAX_TOKENS
            )
            for case, generation in zip(part, answers, strict=True):
                case.text, case.token_ids = generation.text, generation.token_ids
            bar.update(len(part))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--scenes", type=int, default=500, help="test scenes, one question of each task about each")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--mask-decoder", type=Path, help="default: the one in the folder")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--answers", type=Path, help="also write every question and answer here, as JSON lines")
    args = parser.parse_args()

    model, processor = pg_mlx.load(args.folder, dtype=args.dtype)
    decoder = pg_mlx.MaskDecoder.load(args.mask_decoder) if args.mask_decoder else processor.mask_decoder
    done = cases(args.scenes, args.tasks)
    answer(model, processor, done, args.batch_size)
    if args.answers:
        lines = [json.dumps([c.question.prompt, c.question.answer, c.text]) for c in done]
        args.answers.write_text("\n".join(lines) + "\n")
    scores = score(done, decoder)
    if args.json:
        print(json.dumps(scores.means()))
        return
    print("| task | score | of |\n|---|--:|--:|")
    for name, value in sorted(scores.means().items()):
        print(f"| {name} | {value:.3f} | {len(scores.values[name])} |")


if __name__ == "__main__":
    main()
