"""The demo's network: transformers' PaliGemma 2, small, with starting weights that learn fast; and the heads that
teach the tower in the first stage and are thrown away afterwards."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration

from demo.pool import PATCH, SIDE
from demo.scenes import COLORS, SHAPES
from demo.tasks import GRID

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
TEXT_SLOTS = 4
PLACE = 4.0  # norm of a patch's place along each axis, where its content has about 14
LOOK = 1.5
GRAIN = 0.02  # variance, of pixels in -1..1 along one component


def make_config(vocab_size: int) -> PaliGemmaConfig:
    """vocab_size: pieces of the vocabulary; `<image>` gets the next id, rows are filled up to a multiple of 64."""
    text = dict(
        model_type="gemma2", hidden_size=192, num_hidden_layers=6, intermediate_size=576, num_attention_heads=3,
        num_key_value_heads=1, head_dim=64, query_pre_attn_scalar=64, sliding_window=4096,
        vocab_size=-(-(vocab_size + 1) // 64) * 64,
    )  # fmt: skip
    vision = dict(
        model_type="siglip_vision_model", hidden_size=192, num_hidden_layers=6, intermediate_size=576,
        num_attention_heads=6, image_size=SIDE, patch_size=PATCH, vision_use_head=False, projection_dim=192,
    )  # fmt: skip
    return PaliGemmaConfig(
        text_config=text, vision_config=vision, projection_dim=192, image_token_index=vocab_size,
        pad_token_id=0, eos_token_id=1, bos_token_id=2,
    )  # fmt: skip


def make_model(vocab_size: int, first_loc: int, patches: Tensor) -> PaliGemmaForConditionalGeneration:
    """Random weights of unit gain (transformers' 0.02 is made for widths of thousands), with three exceptions that save
    much training: `<loc>` rows start as waves over the coordinate, so that neighbours are alike; the tower's heads
    start by looking at neighbouring patches; and the patch kernel starts by whitening `patches` (float32
    [N, 3 * 14 * 14], some of the pictures), because otherwise their brightness drowns their edges."""
    torch.manual_seed(0)
    model = PaliGemmaForConditionalGeneration._from_config(make_config(vocab_size), attn_implementation="eager")
    for module in model.modules():
        if isinstance(module, nn.Linear) and module is not model.lm_head:
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    tower = model.model.vision_tower
    _whiten(tower.embeddings.patch_embedding, patches)
    _place(tower)
    table = model.get_input_embeddings().weight
    width = table.shape[1]
    with torch.no_grad():
        table.normal_(std=width**-0.5)
        (waves,) = _waves(1024, width, 1, turns=48)
        table[first_loc : first_loc + 1024] = waves + 0.1 * torch.randn(1024, width) * width**-0.5
        table[0].zero_()
    return model


@torch.no_grad()
def _whiten(kernel: nn.Conv2d, patches: Tensor) -> None:
    """Principal components, each scaled to about unit variance; those below the pictures' grain are not blown up."""
    mean = patches.mean(0)
    values, vectors = torch.linalg.eigh((patches - mean).T @ (patches - mean) / len(patches))
    kept = slice(-kernel.out_channels, None)
    rows = vectors[:, kept].T / (values[kept] + GRAIN)[:, None].sqrt()
    kernel.weight.copy_(rows.view_as(kernel.weight))
    kernel.bias.copy_(-rows @ mean)


@torch.no_grad()
def _place(tower: nn.Module) -> None:
    """Give patches their places, and let four of each layer's six heads begin by looking at the patch to the left,
    right, above and below (d'Ascoli et al. 2021, arXiv 2103.10697, start heads as convolutions, too).

    A place is a sum of waves, so moving by a patch is a rotation of each wave: a query that is the rotated place of
    its own patch meets the unrotated key of the neighbour.
    """
    side, turns, width = SIDE // PATCH, SIDE // PATCH, tower.config.hidden_size
    rotation = torch.linalg.qr(torch.randn(width, width))[0]
    middles = (torch.arange(side) + 0.5) / side
    angles = math.pi * middles[:, None] * torch.arange(1, turns + 1)
    waves = torch.cat([angles.cos(), angles.sin()], dim=1) / turns**0.5  # [8, 16], unit norm
    across, down = rotation[: 2 * turns], rotation[2 * turns : 4 * turns]  # directions of the waves in the width
    places = PLACE * ((waves @ across)[None] + (waves @ down)[:, None])
    tower.embeddings.position_embedding.weight.copy_(places.flatten(0, 1))

    rows = torch.cat([across, down])
    size = len(rows)  # 32, which is head_dim
    shift = math.pi / side * torch.arange(1, turns + 1)
    for layer in tower.encoder.layers:
        query, key = layer.self_attn.q_proj.weight, layer.self_attn.k_proj.weight
        for head, (dx, dy) in enumerate([(-1, 0), (1, 0), (0, -1), (0, 1)]):
            moved = torch.block_diag(_turn(dx * shift), _turn(dy * shift)) @ rows
            here = slice(head * size, (head + 1) * size)
            query[here] = 0.5 * query[here] + LOOK * moved
            key[here] = 0.5 * key[here] + LOOK * rows


def _turn(angles: Tensor) -> Tensor:
    """[2 n, 2 n]: (cos a, sin a) of n waves, cosines first, to those of the angles added."""
    cos, sin = torch.diag(angles.cos()), torch.diag(angles.sin())
    return torch.cat([torch.cat([cos, -sin], dim=1), torch.cat([sin, cos], dim=1)])


def _waves(steps: int, width: int, axes: int, turns: int) -> list[Tensor]:
    """For each axis [steps, width] of unit norm: cosines and sines of 1..turns half turns over a coordinate, in random
    directions of the width that no other axis uses."""
    angles = math.pi * torch.linspace(0, 1, steps)[:, None] * torch.arange(1, turns + 1)
    basis = torch.cat([angles.cos(), angles.sin()], dim=1) / turns**0.5
    rotation = torch.linalg.qr(torch.randn(width, width))[0]
    return [basis @ rotation[axis * 2 * turns : (axis + 1) * 2 * turns] for axis in range(axes)]


class TowerHeads(nn.Module):
    """What a patch's feature must tell, linearly: whether an item or a text covers it, its shape, its colour, its box,
    its mask, the whole text and the letter here."""

    def __init__(self, width: int):
        super().__init__()
        self.sizes = dict(
            thing=3, shape=len(SHAPES), color=len(COLORS), middle=1, box=4 * (GRID + 1), codes=16 * 128,
            letters=TEXT_SLOTS * (len(LETTERS) + 1), letter=len(LETTERS),
        )  # fmt: skip
        self.heads = nn.ModuleDict({name: nn.Linear(width, size) for name, size in self.sizes.items()})
        with torch.no_grad():
            self.heads["box"].weight.copy_(torch.cat(_waves(GRID + 1, width, 4, turns=16)))

    def loss(self, features: Tensor, truth: dict[str, Tensor], box_targets: Tensor) -> dict[str, Tensor]:
        """features [B, 64, D]; truth as batches.tower_truth makes it; box_targets [GRID + 1, GRID + 1]: for each
        grid line the distribution to aim at."""
        flat = features.flatten(0, 1)
        on_item, on_text, middle = truth["on_item"], truth["on_text"], truth["middle"]
        items, texts = flat[on_item], flat[on_text]
        boxes = self.heads["box"](items).view(-1, GRID + 1).log_softmax(-1)
        letters = self.heads["letters"](texts).view(-1, len(LETTERS) + 1)
        codes = self.heads["codes"](flat[middle.bool()]).view(-1, 128)
        return {
            "thing": F.cross_entropy(self.heads["thing"](flat), truth["thing"]),
            "shape": 2 * F.cross_entropy(self.heads["shape"](items), truth["shape"]),
            "color": F.cross_entropy(self.heads["color"](items), truth["color"]),
            "middle": 3 * F.binary_cross_entropy_with_logits(self.heads["middle"](flat)[:, 0], middle),
            "box": -(box_targets[truth["box"].flatten()] * boxes).sum(-1).mean(),
            "letter": 2 * _cross_entropy(self.heads["letter"](texts), truth["letter"]),
            "letters": 2 * _cross_entropy(letters, truth["letters"].flatten()),
            "codes": 0.3 * F.cross_entropy(codes, truth["codes"].flatten()),
        }


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean, 0 for a batch without any text."""
    return F.cross_entropy(logits, labels, reduction="sum") / max(len(labels), 1)
