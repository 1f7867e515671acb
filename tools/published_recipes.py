"""Bits for the published shapes, from sensitivities of other models: python -m tools.published_recipes.

No real PaliGemma was measured here. What each kind of matrix costs, layer by layer, is known of two models: the demo
checkpoint, which is trained but small (tools/sensitivities_demo.json), and one of PaliGemma 2 3B's true widths, which
has random weights and two layers (tools/sensitivities_wide.json; --measure makes it). A kind's cost is the geometric
mean of its shares in both, and the demo says how it falls from the first layer to the last. Then bits are chosen as for
any target. The files go to pg_mlx/conversion/recipes.

A table measured on real weights replaces its file: `convert --target-bits 4.5 --calibration DIR` prints it, and writes
it as bits.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from pg_mlx.checkpoint.layouts import weight_specs
from pg_mlx.checkpoint.open import Checkpoint, open_local
from pg_mlx.checkpoint.tensors import Source
from pg_mlx.config import PaliGemmaConfig
from pg_mlx.conversion.bit_table import KINDS, PUBLISHED, grouped
from pg_mlx.conversion.by_budget import chosen
from pg_mlx.conversion.layerwise import AnsweredPrompt
from pg_mlx.conversion.plan import Plan, make_plan
from pg_mlx.conversion.room import header_bytes
from pg_mlx.conversion.sensitivity import sensitivities
from pg_mlx.conversion.target import MOST, Budget, SizeTarget
from tools.random_checkpoint import raw_config

SHAPES = ("paligemma-3b", "paligemma2-3b", "paligemma2-10b", "paligemma2-28b")
BITS = 4.5
"""A weight, scales included: the size of 4 bits everywhere."""

FEWEST_UNMEASURED = 3
"""With 2 bits divergences grow faster than they add up, so nothing gets them unseen."""

HERE = Path(__file__).parent
DEMO, WIDE = HERE / "sensitivities_demo.json", HERE / "sensitivities_wide.json"
ABOUT = (
    "{bits:g} bits a weight; computed from a small trained model and from random weights, not measured on real ones; "
    "any resolution"
)
Sensitivities = dict[str, list[float]]
"""KL in nats of each kind, layer by layer."""


class _Shapes(Source):
    """A checkpoint without weights."""

    def __init__(self, config: PaliGemmaConfig):
        self.shapes = dict(pair for spec in weight_specs(config) for pair in spec.expected())

    def read(self, name: str) -> mx.array:
        raise NotImplementedError(name)

    def stored_bytes(self, name: str) -> int:
        raise NotImplementedError(name)


def plan_of(shape: str, target: SizeTarget) -> Plan:
    """What would be packed of a published shape."""
    raw = raw_config(f"{shape}-448", vocab_size=257216)
    return make_plan(Checkpoint.of(_Shapes(PaliGemmaConfig.from_dict(raw)), raw), target.recipe(MOST))


def expected(kind: str, layers: int, demo: Sensitivities, wide: Sensitivities) -> list[float]:
    """The cost of each of `layers` layers of a kind: together as much as the kind costs in the two models."""
    totals = [sum(map(sum, model.values())) for model in (demo, wide)]
    shares = [sum(model[kind]) / total for model, total in zip((demo, wide), totals, strict=True)]
    known = np.array(demo[kind])
    at = (np.arange(layers) + 0.5) / layers
    profile = np.interp(at, (np.arange(len(known)) + 0.5) / len(known), known)
    return (float(np.sqrt(shares[0] * shares[1])) * profile / profile.sum()).tolist()


def recipe_of(shape: str, demo: Sensitivities, wide: Sensitivities) -> dict[str, Any]:
    """The content of a recipe's file."""
    target = SizeTarget("bits", BITS, f"--target-bits {BITS:g}")
    plan = plan_of(shape, target)
    budget = Budget.of(target, plan, mx.bfloat16.size, header_bytes(plan))
    layers: dict[str, int] = {}
    for group in budget.groups:
        layers[group.kind] = max(layers.get(group.kind, 0), group.layer + 1)
    costs = {kind: expected(kind, count, demo, wide) for kind, count in layers.items()}
    found = [costs[group.kind][group.layer] for group in budget.groups]
    bits = chosen(target, budget, found, mx.bfloat16.size, pictures=0, fewest=FEWEST_UNMEASURED)
    about = ABOUT.format(bits=BITS)
    if bits.slow:
        about += f"; without Metal's fast kernel for one token: {', '.join(bits.slow)}"
    return {**bits.table.to_json(), "name": f"{shape}-4bit", "about": about, "measured_on_real_weights": False}


def measure(folder: Path, images: Sequence[mx.array], tokens: int) -> Sensitivities:
    """Sensitivities of a checkpoint with random weights, about answers of random tokens."""
    checkpoint = open_local(folder)
    target = SizeTarget("bits", BITS, "")
    modules = [module.name for module in make_plan(checkpoint, target.recipe(MOST)).modules if module.target]
    groups = grouped(modules)
    specs = {name: spec for spec in checkpoint.specs for name in spec.sources}
    chance = np.random.default_rng(0)
    vocabulary = checkpoint.config.text.vocab_size - 64
    texts = []
    for number in range(len(images)):
        prompt, answer = (chance.integers(3, vocabulary, count).tolist() for count in (6, tokens))
        texts.append(AnsweredPrompt(number, [2, *prompt], answer))
    found = sensitivities(
        checkpoint, [specs[names[0]] for names in groups.values()], mx.bfloat16, images, texts, vocabulary,
        lambda done, total: print(f"\r{done} of {total}", end="", flush=True),
    )  # fmt: skip
    measured: Sensitivities = {}
    for (kind, _), kl in zip(groups, found, strict=True):
        measured.setdefault(kind, []).append(float(f"{kl:.4g}"))
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        *("--measure", "-m"), type=Path, metavar="FOLDER", help="a checkpoint of tools.random_checkpoint, measured anew"
    )
    args = parser.parse_args()
    if args.measure:
        chance = np.random.default_rng(0)
        size = open_local(args.measure).config.vision.image_size
        coarse = chance.uniform(-1, 1, (1, 1, 8, 8, 3)).astype(np.float32)
        images = [mx.array(image.repeat(size // 8, axis=1).repeat(size // 8, axis=2)) for image in coarse]
        WIDE.write_text(json.dumps({"measured": {"bits": 3, "kl": measure(args.measure, images, 8)}}, indent=1) + "\n")
    demo, wide = (json.loads(path.read_text())["measured"]["kl"] for path in (DEMO, WIDE))
    assert set(demo) <= set(KINDS) and set(demo) == set(wide)
    PUBLISHED.mkdir(exist_ok=True)
    for shape in SHAPES:
        content = recipe_of(shape, demo, wide)
        (PUBLISHED / f"{content['name']}.json").write_text(json.dumps(content, indent=1) + "\n")
        print(content["name"], content["about"], sep=": ")


if __name__ == "__main__":
    main()
