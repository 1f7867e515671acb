"""Compare pg_mlx with transformers on the trained checkpoint: python -m demo.parity RUN/hf CONVERTED.

Both answer the same test questions greedily in float32: transformers from the folder it wrote itself, pg_mlx from a
float32 conversion of it. Prints how many answers are equal token for token, and for the others the margin between the
two likeliest tokens where they part. Needs torch and transformers beside pg_mlx.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import mlx.core as mx
import numpy as np
import torch
from transformers import PaliGemmaForConditionalGeneration

import pg_mlx
from demo.evaluate import Case, answer, cases

PICTURE_TOKENS = 64
MAX_TOKENS = 160


@torch.inference_mode()
def reference(model: PaliGemmaForConditionalGeneration, processor: pg_mlx.Processor, case: Case) -> list[int]:
    """Greedy tokens of transformers for one question, without <eos>."""
    prefix = processor.prompt_ids(case.question.prompt)
    ids = torch.tensor([[model.config.image_token_id] * PICTURE_TOKENS + prefix])
    pixels = torch.from_numpy(processor.pixels(case.scene.image).transpose(2, 0, 1).copy())[None]
    out = model.generate(
        input_ids=ids, pixel_values=pixels, attention_mask=torch.ones_like(ids), token_type_ids=torch.zeros_like(ids),
        max_new_tokens=MAX_TOKENS, do_sample=False,
    )  # fmt: skip
    tokens = out[0, ids.shape[1] :].tolist()
    return tokens[:-1] if tokens and tokens[-1] == processor.tokenizer.eos_id else tokens


def margin(model: pg_mlx.PaliGemma, processor: pg_mlx.Processor, case: Case, agreed: list[int]) -> float:
    """How far the likeliest token leads after the tokens both agree on."""
    features = model.encode_image(mx.array(processor.pixels(case.scene.image))[None])
    prefix = [*processor.prompt_ids(case.question.prompt), *agreed]
    if agreed:
        count = len(prefix) - len(agreed)
        logits = model.logits(features, mx.array([prefix[:count]]), mx.array([agreed]))[0, -1]
    else:
        logits = model.logits(features, mx.array([prefix]))[0, -1]
    best = np.sort(np.array(logits[: processor.tokenizer.vocab_size]))
    return float(best[-1] - best[-2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reference", type=Path, help="folder that transformers wrote")
    parser.add_argument("converted", type=Path, help="float32 conversion of it")
    parser.add_argument("--scenes", type=int, default=84, help="six questions about each (default: 84, 504 questions)")
    args = parser.parse_args()

    theirs = PaliGemmaForConditionalGeneration.from_pretrained(args.reference, dtype=torch.float32).eval()
    ours, processor = pg_mlx.load(args.converted, dtype="float32")
    todo = cases(args.scenes)
    answer(ours, processor, todo, batch_size=16)
    equal, margins = 0, []
    for case in todo:
        tokens = list(case.token_ids)
        expected = reference(theirs, processor, case)
        if tokens == expected:
            equal += 1
            continue
        pairs = zip(tokens, expected, strict=False)
        same = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(tokens), len(expected)))
        margins.append(margin(ours, processor, case, expected[:same]))
    print(f"{equal} of {len(todo)} answers have identical tokens")
    if margins:
        print(f"top-2 margins where the others part: {', '.join(f'{m:.1e}' for m in sorted(margins))}")


if __name__ == "__main__":
    main()
