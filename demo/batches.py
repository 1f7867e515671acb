"""From pool scenes to tensors: truth for the tower's heads, and questions laid out for the decoder.

A row of the decoder is [picture][question 1][question 2]...: every question sees the picture and itself (its
prompt both ways, its answer causally), and counts its positions as if it stood alone. With one question a row the
picture sees the prompt too, which is PaliGemma's own mask; with several it cannot, and that cheaper layout serves most
of training.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import sentencepiece
import torch
from torch import Tensor
from transformers import PaliGemmaForConditionalGeneration

from demo.model import LETTERS, TEXT_SLOTS
from demo.pool import NOTHING, PATCH, PATCHES, TEXT, Pool, code_lookup
from demo.scenes import COLORS, FONTS, SHAPES, TEXT_MARGIN, Scene, font
from demo.tasks import GRID, Question, ask

PICTURE = PATCHES * PATCHES
COLOR_INDEX = {name: i for i, name in enumerate(COLORS)}

TASK_SHARES = {"detect": 0.34, "segment": 0.11, "answer": 0.29, "caption": 0.1, "describe": 0.03, "ocr": 0.13}
OCR_OF_NOTHING = 0.3  # how often "ocr" is really asked of a scene without text


def pixels(pool: Pool, chosen: np.ndarray, rng: np.random.Generator | None) -> Tensor:
    """float32 [B, 3, 112, 112] in -1..1; with a generator, of slightly varied brightness, contrast and grain."""
    x = pool.pixels[chosen].astype(np.float32) / 127.5 - 1
    if rng is not None:
        x = x * rng.uniform(0.9, 1.1, (len(x), 1, 1, 1)) + rng.uniform(-0.08, 0.08, (len(x), 1, 1, 1))
        x = np.clip(x + 0.03 * rng.standard_normal(x.shape, np.float32), -1, 1)
    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2), np.float32))


def sample_patches(pool: Pool, scenes: int) -> Tensor:
    """float32 [scenes * 64, 3 * 14 * 14] in -1..1: all patches of the first scenes, channels first as in a kernel."""
    x = pixels(pool, np.arange(scenes), None)
    return x.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH).permute(0, 2, 3, 1, 4, 5).reshape(-1, 3 * PATCH * PATCH)


def tower_truth(pool: Pool, chosen: np.ndarray) -> dict[str, Tensor]:
    """What each patch should tell.

    For all patches [B * 64]: thing (0, 1 an item, 2 a text), middle, on_item, on_text. For those on an item: shape,
    color, box [4] in grid lines. Of those on a text: letters [4], and about which letter is here. Of those with an
    item's middle: codes [16].
    """
    things, middles, shapes, colors, boxes, letters, letter, codes = [], [], [], [], [], [], [], []
    for index in chosen:
        scene, owners = pool.truth[index], pool.owners[index].flatten()
        middle = np.zeros(PICTURE, np.float32)
        scene_codes = {}
        for i, item in enumerate(scene.items):
            x, y = item.center
            patch = min(int(y * PATCHES), PATCHES - 1) * PATCHES + min(int(x * PATCHES), PATCHES - 1)
            middle[patch] = 1
            scene_codes[patch] = pool.codes[index][i]
        codes += [scene_codes[patch] for patch in sorted(scene_codes)]
        middles.append(middle)
        spelled = [LETTERS.index(c) + 1 for c in scene.text] + [0] * (TEXT_SLOTS - len(scene.text))
        for patch, owner in enumerate(owners):
            if owner == NOTHING:
                things.append(0)
            elif owner == TEXT:
                things.append(2)
                letters.append(spelled)
                letter.append(_letter_at(scene, (patch % PATCHES + 0.5) / PATCHES))
            else:
                item = scene.items[owner]
                things.append(1)
                shapes.append(SHAPES.index(item.shape))
                colors.append(COLOR_INDEX[item.color])
                boxes.append([round(c * GRID) for c in item.box])
    thing = torch.tensor(things)
    return {
        "thing": thing,
        "middle": torch.from_numpy(np.concatenate(middles)),
        "on_item": thing == 1,
        "on_text": thing == 2,
        "shape": torch.tensor(shapes),
        "color": torch.tensor(colors),
        "box": torch.tensor(boxes),
        "letter": torch.tensor(letter, dtype=torch.long),
        "letters": torch.tensor(letters, dtype=torch.long).view(-1, TEXT_SLOTS),
        "codes": torch.from_numpy(np.stack(codes).astype(np.int64)),
    }


def _letter_at(scene: Scene, x: float) -> int:
    """The index of the letter of the scene's text that stands at x in 0..1, by the widths of one usual font."""
    assert scene.text_box is not None
    x0, _, x1, _ = scene.text_box
    widths = np.cumsum([_width(letter) for letter in scene.text])
    along = (x - x0 - TEXT_MARGIN) / (x1 - x0 - 2 * TEXT_MARGIN) * widths[-1]
    return LETTERS.index(scene.text[min(int(np.searchsorted(widths, along)), len(widths) - 1)])


@functools.cache
def _width(letter: str) -> float:
    return font(FONTS[3], 100).getlength(letter)


class Vocabulary:
    """Texts to ids, remembering those seen."""

    def __init__(self, path: str):
        self.pieces = sentencepiece.SentencePieceProcessor(model_file=path)
        self.size: int = self.pieces.vocab_size()
        self.first_loc: int = self.pieces.piece_to_id("<loc0000>")
        self.newline: int = self.pieces.piece_to_id("\n")
        self._prompts: dict[str, list[int]] = {}

    def prefix(self, prompt: str) -> list[int]:
        if prompt not in self._prompts:
            self._prompts[prompt] = [2, *self.pieces.encode(prompt), self.newline]
        return self._prompts[prompt]

    def suffix(self, answer: str) -> list[int]:
        return [*self.pieces.encode(answer), 1]


@dataclass
class Layout:
    """One decoder batch of B rows, T text slots each. Targets are positions whose next token is to be learned."""

    ids: Tensor  # int64 [B, T]
    positions: Tensor  # int64 [B, 64 + T]
    mask: Tensor  # bool [B, 1, 64 + T, 64 + T]
    at: Tensor  # int64 [targets], indices into the flattened [B * (64 + T)]
    labels: Tensor  # int64 [targets]
    weights: Tensor  # float32 [targets], summing to one
    questions: list[list[Question]]


def lay_out(rows: list[list[Question]], vocabulary: Vocabulary, whole: bool) -> Layout:
    """whole: one question a row, under PaliGemma's own mask."""
    texts = [[(vocabulary.prefix(q.prompt), vocabulary.suffix(q.answer)) for q in row] for row in rows]
    slots = max(sum(len(p) + len(s) for p, s in row) for row in texts)
    length = PICTURE + slots
    ids = np.zeros((len(rows), slots), np.int64)
    positions = np.zeros((len(rows), length), np.int64)
    positions[:, :PICTURE] = np.arange(PICTURE)
    segment = np.full((len(rows), length), -1, np.int64)
    segment[:, :PICTURE] = 0
    suffix = np.zeros((len(rows), length), bool)
    at: list[int] = []
    labels: list[int] = []
    weights: list[float] = []
    for r, row in enumerate(texts):
        start = 0
        for number, (prefix, answer) in enumerate(row, 1):
            n, m = len(prefix), len(answer)
            here = slice(PICTURE + start, PICTURE + start + n + m)
            ids[r, start : start + n + m] = prefix + answer
            positions[r, here] = PICTURE + np.arange(n + m)
            segment[r, here] = number
            suffix[r, PICTURE + start + n : here.stop] = True
            at += range(r * length + here.start + n - 1, r * length + here.stop - 1)
            labels += answer
            weights += [m**-0.5] * m
            start += n + m
    query, key = segment[:, :, None], segment[:, None, :]
    order = np.arange(length)
    same = (query == key) & ((order <= order[:, None]) | ~(suffix[:, :, None] | suffix[:, None, :]))
    allowed = same | (key == 0)
    if whole:
        allowed |= (query == 0) & (key == 1) & ~suffix[:, None, :]
    weight = torch.tensor(weights)
    return Layout(
        torch.from_numpy(ids), torch.from_numpy(positions), torch.from_numpy(allowed)[:, None],
        torch.tensor(at), torch.tensor(labels), weight / weight.sum(), rows,
    )  # fmt: skip


def questions(
    pool: Pool, index: int, vocabulary: Vocabulary, rng: np.random.Generator, budget: int, most: int
) -> list[Question]:
    """Random questions about one scene: at most `most`, until `budget` tokens are full."""
    chosen: list[Question] = []
    names, shares = list(TASK_SHARES), np.array(list(TASK_SHARES.values()))
    used = 0
    codes = code_lookup(pool, index)
    scene = pool.truth[index]
    for task in rng.choice(names, size=most, p=shares):
        if task == "ocr" and not scene.text and rng.random() > OCR_OF_NOTHING:
            continue
        question = ask(scene, str(task), rng, codes)
        size = len(vocabulary.prefix(question.prompt)) + len(vocabulary.suffix(question.answer))
        if used + size <= budget or not chosen:
            chosen.append(question)
            used += size
    return chosen


def answer_logits(model: PaliGemmaForConditionalGeneration, features: Tensor, layout: Layout) -> Tensor:
    """Logits [targets, V] of a layout; features [B, 64, D] are the projected picture rows."""
    core = model.model
    x = torch.cat([features, model.get_input_embeddings()(layout.ids)], dim=1)
    mask = torch.where(layout.mask, 0.0, torch.finfo(x.dtype).min)
    hidden = core.language_model(
        inputs_embeds=x,
        attention_mask={"full_attention": mask, "sliding_attention": mask},
        position_ids=layout.positions,
        use_cache=False,
    ).last_hidden_state
    logits = model.lm_head(hidden.flatten(0, 1)[layout.at])
    cap = model.config.text_config.final_logit_softcapping
    return cap * torch.tanh(logits / cap)
