"""Quick scores of a model in training: how often the next token is right if all tokens before it are given."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import torch
from transformers import PaliGemmaForConditionalGeneration

from demo.batches import Vocabulary, lay_out, pixels, questions
from demo.pool import Pool


@torch.inference_mode()
def validate(model: PaliGemmaForConditionalGeneration, pool: Pool, vocabulary: Vocabulary, scenes: int = 160) -> str:
    """One line: right answers to each kind of question (all tokens right, coordinates aside), the median and
    90th percentile of the coordinates' error in thousandths, and the share of right mask tokens."""
    from demo.batches import answer_logits

    rng = np.random.default_rng(0)
    right: dict[str, list[bool]] = defaultdict(list)
    errors: list[int] = []
    codes: list[bool] = []
    first, last = vocabulary.first_loc, vocabulary.first_loc + 1024
    for start in range(0, scenes, 16):
        chosen = np.arange(start, start + 16)
        asked = [questions(pool, int(i), vocabulary, rng, 400, 6) for i in chosen]
        features = model.get_image_features(pixel_values=pixels(pool, chosen, None)).pooler_output
        features = features.repeat_interleave(torch.tensor([len(row) for row in asked]), dim=0)
        flat = [[question] for row in asked for question in row]
        layout = lay_out(flat, vocabulary, whole=True)
        guesses = answer_logits(model, features, layout).argmax(-1).tolist()
        labels = layout.labels.tolist()
        position = 0
        for (question,) in flat:
            size = len(vocabulary.suffix(question.answer))
            good = True
            for guess, label in zip(
                guesses[position : position + size], labels[position : position + size], strict=True
            ):
                if first <= label < last:
                    good &= first <= guess < last
                    errors.append(abs(guess - label) if first <= guess < last else 1000)
                elif last <= label < last + 128:
                    codes.append(guess == label)
                else:
                    good &= guess == label
            right[question.kind or question.task].append(good)
            position += size
    figures = [f"{kind} {100 * np.mean(values):.0f}%" for kind, values in sorted(right.items())]
    figures.append(f"loc {np.median(errors):.0f}/{np.quantile(errors, 0.9):.0f}")
    return ", ".join([*figures, f"seg {100 * np.mean(codes):.0f}%"])
