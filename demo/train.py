"""Train the demo checkpoint: python -m demo.train RUN.

Everything is made from seeds: vocabulary, scenes, mask VAE, then the stages below, one after the other. RUN keeps the
state; started again, the command goes on where it stopped. The result is RUN/hf, a Hugging Face folder as transformers
writes it, with RUN/mask_vae.npz beside it.
"""

from __future__ import annotations

import argparse
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PaliGemmaForConditionalGeneration, SiglipImageProcessorPil

from demo import mask_vae
from demo import pool as pools
from demo.batches import Vocabulary, answer_logits, lay_out, pixels, questions, sample_patches, tower_truth
from demo.evaluate_hf import validate
from demo.model import TowerHeads, make_model
from demo.pool import SIDE
from demo.scenes import TRAIN_SEEDS, VALIDATION_SEEDS
from demo.tasks import GRID, Question, grid_loc
from demo.vocabulary import make_vocabulary


@dataclass(frozen=True)
class Stage:
    """What a number of steps looks like."""

    name: str
    steps: int
    rate: float
    scenes: int
    """Pictures in a batch."""
    questions: int = 0
    """Asked at most about each picture; 0: only the tower learns."""
    whole: bool = False
    """Each question in a row of its own, under PaliGemma's mask. A batch is the shorter or the longer half of them."""
    blur: float = 0.0
    """Width, in grid lines, of the Gaussian that stands for a coordinate."""
    most_items: int = 6
    texts: float = 0.5
    """Share of a batch's scenes that carry a text."""
    cool: bool = False
    """The rate falls to nothing by the end."""
    tower_share: float = 0.3
    """Weight of the tower's own losses."""


STAGES = (
    Stage("see", 6500, 1e-3, 24, blur=1.5),
    Stage("talk", 1500, 1e-3, 8, questions=12, blur=1.5, most_items=3),
    Stage("count", 1600, 1e-3, 8, questions=12, blur=1.0),
    Stage("read", 2500, 1e-3, 24, blur=1.0, texts=0.9),
    Stage("practise", 1000, 1e-3, 10, questions=9, blur=0.8, texts=0.7),
    Stage("settle", 5500, 1e-3, 10, questions=9, blur=0.6, texts=0.65, cool=True),
    Stage("whole", 700, 3e-4, 8, questions=7, whole=True, blur=0.4, texts=0.6, cool=True),
    Stage("polish", 1100, 5e-4, 10, questions=9, blur=0.3, texts=0.8, cool=True, tower_share=0.5),
    Stage("letters", 1200, 1e-3, 24, blur=0.5, texts=0.8),
    Stage("finish", 4500, 1e-3, 10, questions=9, blur=0.3, texts=0.7, cool=True, tower_share=0.5),
)
TEXT_BUDGET = 150
WARMUP = 200


def grid_targets(blur: float) -> Tensor:
    """[GRID + 1, GRID + 1]: row g is the distribution that stands for grid line g."""
    lines = torch.arange(GRID + 1.0)
    if blur == 0:
        return torch.eye(GRID + 1)
    return torch.softmax(-((lines[:, None] - lines) ** 2) / (2 * blur**2), dim=1)


class LocTargets:
    """Turns labels into distributions over the vocabulary: one piece, or for `<loc>` its blurred neighbourhood."""

    def __init__(self, first_loc: int):
        ids = torch.tensor([first_loc + grid_loc(g / GRID) for g in range(GRID + 1)])
        self.ids = ids
        self.line = torch.full((first_loc + 1024,), -1)
        self.line[ids] = torch.arange(GRID + 1)

    def loss(self, logits: Tensor, labels: Tensor, weights: Tensor, targets: Tensor) -> Tensor:
        """Weighted cross entropy of logits [N, V] against labels [N]."""
        log_probs = logits.log_softmax(-1)
        lines = torch.where(labels < len(self.line), self.line[labels.clamp(max=len(self.line) - 1)], -1)
        is_loc = lines >= 0
        picked = log_probs.gather(1, labels[:, None])[:, 0]
        blurred = (log_probs[is_loc][:, self.ids] * targets[lines[is_loc]]).sum(-1)
        return -(picked.masked_fill(is_loc, 0) * weights).sum() - (blurred * weights[is_loc]).sum()


class Trainer:
    def __init__(self, run: Path):
        self.run = run
        self.vocabulary = Vocabulary(str(run / "tokenizer.model"))
        self.train = pools.load(run / "train")
        self.validation = pools.load(run / "validation")
        self.sizes = np.array([len(scene.items) for scene in self.train.truth])
        self.written = np.array([bool(scene.text) for scene in self.train.truth])
        self.model = make_model(self.vocabulary.size, self.vocabulary.first_loc, sample_patches(self.train, 500))
        self.heads = TowerHeads(self.model.config.vision_config.hidden_size)
        self.locs = LocTargets(self.vocabulary.first_loc)
        weights = [*self.model.parameters(), *self.heads.parameters()]
        matrices, vectors = [p for p in weights if p.ndim > 1], [p for p in weights if p.ndim < 2]
        self.optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}],
            betas=(0.9, 0.98),
            fused=True,
        )
        self.stage, self.step, self.seen = 0, 0, 0
        self.losses: dict[str, float] = {}
        state = run / "state.pt"
        if state.is_file():
            saved = torch.load(state, weights_only=True)
            self.model.load_state_dict(saved["model"])
            self.heads.load_state_dict(saved["heads"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.stage, self.step, self.seen = saved["stage"], saved["step"], saved["seen"]

    def save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "heads": self.heads.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "stage": self.stage,
            "step": self.step,
            "seen": self.seen,
        }
        torch.save(state, self.run / "state.new")
        (self.run / "state.new").replace(self.run / "state.pt")

    def loss(self, stage: Stage, rng: np.random.Generator, targets: Tensor) -> Tensor:
        fitting = self.sizes <= stage.most_items
        texts = round(stage.texts * stage.scenes)
        halves = ((fitting & self.written, texts), (fitting & ~self.written, stage.scenes - texts))
        chosen = np.concatenate([rng.choice(np.flatnonzero(those), n, replace=False) for those, n in halves])
        seen = self.model.model.vision_tower(pixel_values=pixels(self.train, chosen, rng)).last_hidden_state
        parts = self.heads.loss(seen, tower_truth(self.train, chosen), targets)
        loss = torch.stack(list(parts.values())).sum()
        if stage.questions:
            features = self.model.model.multi_modal_projector(seen)
            asked = [questions(self.train, i, self.vocabulary, rng, TEXT_BUDGET, stage.questions) for i in chosen]
            if stage.whole:
                picture = np.repeat(np.arange(len(asked)), [len(row) for row in asked])
                asked = [[question] for row in asked for question in row]
                half = self._alike(asked, rng)
                features, asked = features[torch.from_numpy(picture[half])], [asked[i] for i in half]
            layout = lay_out(asked, self.vocabulary, stage.whole)
            logits = answer_logits(self.model, features, layout)
            parts["answer"] = self.locs.loss(logits, layout.labels, layout.weights, targets)
            loss = stage.tower_share * loss + parts["answer"]
            self.seen += sum(map(len, asked))
        for name, value in parts.items():
            value = float(value.detach())
            self.losses[name] = 0.98 * self.losses.get(name, value) + 0.02 * value
        return loss

    def _alike(self, rows: list[list[Question]], rng: np.random.Generator) -> np.ndarray:
        """Indices of the shorter or the longer half of the rows, so that little is spent on padding."""
        sizes = [sum(map(len, (self.vocabulary.prefix(q.prompt), self.vocabulary.suffix(q.answer)))) for (q,) in rows]
        order = np.argsort(sizes, kind="stable")
        return np.array_split(order, 2)[rng.integers(2)]

    def run_stage(self, stage: Stage, every: int, save_every: float) -> None:
        targets = grid_targets(stage.blur)
        began = saved = time.time()
        first_step, first_seen = self.step, self.seen
        weights = [p for group in self.optimizer.param_groups for p in group["params"]]
        while self.step < stage.steps:
            rng = np.random.default_rng((7, self.stage, self.step))
            share = (stage.steps - self.step) / stage.steps if stage.cool else 1.0
            warm = min(1.0, (self.step + 1) / WARMUP)
            for group in self.optimizer.param_groups:
                group["lr"] = stage.rate * share * warm
            loss = self.loss(stage, rng, targets)
            self.optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            self.optimizer.step()
            self.step += 1
            if self.step % every == 0:
                spent = time.time() - began
                speed = (self.step - first_step) / spent
                figures = "  ".join(f"{name} {value:.3f}" for name, value in self.losses.items())
                print(
                    f"{stage.name} {self.step}/{stage.steps}  {speed:.2f} steps/s "
                    f"{(self.seen - first_seen) / spent:.0f} answers/s  {self.seen} answers  {figures}",
                    flush=True,
                )
            if time.time() - saved > save_every or self.step == stage.steps:
                saved = time.time()
                self.save()
                if stage.questions:
                    print("  validation: " + validate(self.model, self.validation, self.vocabulary), flush=True)
        self.stage, self.step = self.stage + 1, 0
        self.save()


def prepare(run: Path, scenes: int, mask_steps: int) -> None:
    """Whatever of vocabulary, pools and mask VAE is not there yet."""
    run.mkdir(parents=True, exist_ok=True)
    if not (run / "tokenizer.model").is_file():
        make_vocabulary(run / "tokenizer.model")
    if not (run / "mask_vae.npz").is_file():
        _, masks = pools.render(TRAIN_SEEDS[:3000])
        mask_vae.save(mask_vae.train(np.concatenate([np.stack(m) for m in masks]), mask_steps), run / "mask_vae.npz")
    vae = mask_vae.load(run / "mask_vae.npz")
    for name, seeds in (("validation", VALIDATION_SEEDS[:1000]), ("train", TRAIN_SEEDS[:scenes])):
        if not (run / name / "truth.pickle").is_file():
            print(f"rendering {len(seeds)} {name} scenes", flush=True)
            pool, masks = pools.render(seeds)
            codes = vae.codes(np.stack([m for scene in masks for m in scene])).astype(np.int16)
            pool.codes = np.split(codes, np.cumsum([len(scene) for scene in masks])[:-1])
            pools.save(pool, run / name)


def export(model: PaliGemmaForConditionalGeneration, run: Path) -> None:
    """RUN/hf: weights as transformers writes them, and what a processor needs."""
    folder = run / "hf"
    model.save_pretrained(folder)
    shutil.copy(run / "tokenizer.model", folder)
    SiglipImageProcessorPil(
        size={"height": SIDE, "width": SIDE}, image_mean=[0.5] * 3, image_std=[0.5] * 3, resample=3,
    ).save_pretrained(folder)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder for everything that is made")
    parser.add_argument("--scenes", type=int, default=80_000, help="training scenes (default: 80000)")
    parser.add_argument("--every", type=int, default=100, metavar="STEPS", help="a progress line (default: 100)")
    parser.add_argument("--save-every", type=float, default=300, metavar="SECONDS", help="a checkpoint (default: 300)")
    parser.add_argument("--rehearse", action="store_true", help="the whole way with a hundredth of scenes and steps")
    args = parser.parse_args()

    share = 100 if args.rehearse else 1
    prepare(args.run, args.scenes // share, 250 if args.rehearse else 2500)
    trainer = Trainer(args.run)
    for stage in STAGES[trainer.stage :]:
        trainer.run_stage(replace(stage, steps=-(-stage.steps // share)), args.every, args.save_every)
    export(trainer.model, args.run)
    print(f"{args.run / 'hf'} is done after {trainer.seen} answers")


if __name__ == "__main__":
    main()
