"""Which part of a checkpoint each rank holds, and which bytes it reads: no ranks are needed for that."""

from __future__ import annotations

import os
from pathlib import Path

import mlx.core as mx
import pytest
from helpers.checkpoints import GOLDEN
from helpers.memory import growth
from helpers.models import Memory, config_json, random_tensors, same, wide_config_json, write_folder

from pg_mlx.checkpoint.adapters.merge import open_adapters
from pg_mlx.checkpoint.footprint import needed_bytes, weight_bytes
from pg_mlx.checkpoint.layouts import weight_specs
from pg_mlx.checkpoint.load import build
from pg_mlx.checkpoint.open import Checkpoint, open_local
from pg_mlx.checkpoint.tensors import SafetensorsFolder, Source
from pg_mlx.config import SIZES, PaliGemmaConfig
from pg_mlx.demo import CHECKPOINT
from pg_mlx.errors import InputError
from pg_mlx.memory.residency import held_bytes
from pg_mlx.parallel.plan import RankPart, part_of
from pg_mlx.parallel.shares import checked_shares, cut, parse_shares
from pg_mlx.quantization import Quantization


class Shapes(Source):
    """A checkpoint of which only the shapes exist."""

    def __init__(self, shapes: dict[str, tuple[int, ...]]):
        self.shapes = shapes

    def stored_bytes(self, name: str) -> int:
        return 4


def published(size: str, packing: Quantization | None = None) -> Checkpoint:
    """A published model's shapes, its decoder's layers packed."""
    raw = {"model_type": "paligemma", "text_config": SIZES[size]}
    shapes = {}
    for spec in weight_specs(PaliGemmaConfig.from_dict(raw)):
        for name, shape in spec.expected():
            module = name.removesuffix(".weight")
            if packing and ".layers." in name and name.startswith("language") and len(shape) == 2:
                shapes[name] = (shape[0], shape[1] * packing.bits // 32)
                for part in packing.parts[1:]:
                    shapes[f"{module}.{part}"] = (shape[0], shape[1] // packing.group_size)
            else:
                shapes[name] = shape
    return Checkpoint.of(Shapes(shapes), raw)


def widths(checkpoint: Checkpoint, shares: str) -> list[tuple[int, int, int]]:
    """Columns of o_proj and of down_proj, and heads of keys and values of each rank."""
    given = parse_shares(shares)
    texts = [part_of(checkpoint, "tensor", rank, given).checkpoint.config.text for rank in range(len(given))]
    return [(t.num_attention_heads * t.head_dim, t.intermediate_size, t.num_key_value_heads) for t in texts]


@pytest.mark.parametrize(("size", "shares", "expected"), [
    ("paligemma2-28b", "10:6", [(2560, 23040, 10), (1536, 13824, 6)]),
    ("paligemma2-28b", "11:5", [(3072, 25600, 12), (1024, 11264, 4)]),
    ("paligemma2-10b", "1:1:1:1", [(1024, 3584, 2)] * 4),
    ("paligemma2-3b", "1:1", [(1024, 4608, 2), (1024, 4608, 2)]),
    ("paligemma-3b", "1:1:1", [(512, 5632, 1), (1024, 5120, 1), (512, 5632, 1)]),
])  # fmt: skip
def test_parts_keep_fast_kernels(size: str, shares: str, expected: list[tuple[int, int, int]]) -> None:
    """Four bits need multiples of 512 columns; what eight bits need divides that."""
    for packing in (Quantization(4, 64), None):
        assert widths(published(size, packing), shares) == expected
    for wide, mlp, _ in widths(published(size, Quantization(8, 64)), shares):
        assert wide % 256 == mlp % 256 == 0


def test_narrow_matrices_are_cut_in_groups() -> None:
    assert widths(open_local(CHECKPOINT), "2:1") == [(128, 384, 1), (64, 192, 1)]


@pytest.mark.parametrize(("mode", "shares", "words"), [
    ("tensor", "1:1:1", "2 heads of keys and values cannot be divided among 3 ranks"),
    ("tensor", "1:1:1:1:1", "96 attention outputs cannot be divided among 5 ranks in whole groups of 24"),
    ("pipeline", "1:1:1:1:1", "4 layers cannot be divided among 5 ranks"),
])  # fmt: skip
def test_what_cannot_be_divided(mode: str, shares: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        part_of(open_local(GOLDEN / "pg2_new"), mode, 0, parse_shares(shares))


def test_a_share_inside_a_packed_group() -> None:
    raw = wide_config_json("gemma2")
    raw["text_config"]["num_attention_heads"] = 2
    raw["text_config"]["num_key_value_heads"] = 1
    tensors = random_tensors(raw)
    name = "language_model.model.layers.0.self_attn.o_proj"
    packed = Quantization(8, 64).pack(tensors.pop(f"{name}.weight"))
    checkpoint = Checkpoint.of(Memory(tensors | {f"{name}.{part}": array for part, array in packed.items()}), raw)
    with pytest.raises(InputError, match="64 attention outputs cannot be divided among 2 ranks in whole groups of 64"):
        part_of(checkpoint, "tensor", 0, (1, 1))


def test_adapters_are_refused_by_tensor() -> None:
    adapters = open_adapters(GOLDEN / "pg1_lora_classic")
    checkpoint = open_local(GOLDEN / "pg1_classic").with_adapters(adapters)
    with pytest.raises(InputError, match="cannot divide an adapter"):
        part_of(checkpoint, "tensor", 0, (1, 1))
    assert part_of(checkpoint, "pipeline", 0, (1, 1)).about == "layers 1 to 2 of 4"


@pytest.mark.parametrize("text", ["", "1", "1:", "0:1", "1:-1", "a:b", "1:1.5", "1:99999", "1 : 1"])
def test_wrong_shares(text: str) -> None:
    with pytest.raises(InputError, match="not shares"):
        parse_shares(text)


def test_cuts_cover_everything_once() -> None:
    for total, unit, shares in ((46, 1, (10, 6)), (4, 1, (1, 1000, 1)), (36864, 512, (3, 1)), (7, 1, (1,) * 7)):
        parts = cut(total, unit, shares, "things")
        assert [index for part in parts for index in part] == list(range(total))
        assert all(len(part) >= unit and len(part) % unit == 0 for part in parts)
    with pytest.raises(InputError, match="3 ranks, but there are 2"):
        checked_shares((1, 1, 1), 2)


@pytest.mark.parametrize("folder", [GOLDEN / "pg1_classic", GOLDEN / "pg2_new", CHECKPOINT])
@pytest.mark.parametrize(("mode", "shares"), [("pipeline", (1, 2)), ("tensor", (2, 1))])
def test_parts_hold_the_checkpoint_once(folder: Path, mode: str, shares: tuple[int, ...]) -> None:
    """What a part holds is what was estimated, and parts together hold every layer's weights once."""
    checkpoint = open_local(folder)
    parts = [part_of(checkpoint, mode, rank, shares) for rank in range(2)]
    for part in parts:
        model = build(part.checkpoint, "float32")
        estimated = weight_bytes(part.checkpoint, mx.float32)
        assert estimated <= held_bytes(model) < 1.01 * estimated + 4096
        assert needed_bytes(part.checkpoint, mx.float32) < needed_bytes(checkpoint, mx.float32)
    if mode == "pipeline":
        assert sum(weight_bytes(part.checkpoint, mx.float32) for part in parts) == weight_bytes(checkpoint, mx.float32)
    else:
        joined(checkpoint, parts)


def joined(checkpoint: Checkpoint, parts: list[RankPart]) -> None:
    """The matrices of a layer, put together again, are the checkpoint's."""
    layer = "language_model.model.layers.1"
    names = [name for name in checkpoint.source.shapes if name.startswith(f"{layer}.") and "_proj." in name]
    assert names
    for name in names:
        if ("k_proj" in name or "v_proj" in name) and checkpoint.config.text.num_key_value_heads == 1:
            assert all(same(part.checkpoint.source.read(name), checkpoint.source.read(name)) for part in parts)
            continue
        axis = 1 if "o_proj" in name or "down_proj" in name else 0
        pieces = [part.checkpoint.source.read(name) for part in parts]
        assert same(mx.concatenate(pieces, axis=axis), checkpoint.source.read(name)), name


def test_only_the_part_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows and columns of a file of matrices in all dtypes: the right bits, and no other bytes."""
    source = open_local(CHECKPOINT).source
    assert isinstance(source, SafetensorsFolder)
    read = list[int]()
    real = os.preadv

    def counting(file: int, buffers: list[memoryview], offset: int) -> int:
        done = real(file, buffers, offset)
        read.append(done)
        return done

    monkeypatch.setattr(os, "preadv", counting)
    for name, shape in source.shapes.items():
        if len(shape) != 2:
            continue
        for axis in (0, 1):
            part = range(shape[axis] // 3, shape[axis] // 3 + max(1, shape[axis] // 2))
            read.clear()
            found = source.read_part(name, axis, part)
            whole = source.read(name)
            expected = whole[part.start : part.stop] if axis == 0 else whole[:, part.start : part.stop]
            assert same(found, expected), (name, axis)
            assert sum(read) == source.stored_bytes(name) * len(part) // shape[axis]


def test_loading_a_part_takes_no_more_than_loading_the_whole(tmp_path: Path) -> None:
    """Beside what is held, only a fused matrix of one layer is there for a moment, so many layers make the peak low."""
    raw = wide_config_json("gemma2")
    raw["text_config"] |= dict(num_hidden_layers=8, intermediate_size=2048)
    checkpoint = open_local(write_folder(tmp_path, raw, random_tensors(raw)))
    _, whole = held_and_more(checkpoint)
    for mode in ("pipeline", "tensor"):
        held, more = held_and_more(part_of(checkpoint, mode, 1, (1, 1)).checkpoint)
        assert more <= 1.01 * whole and held + more <= 1.1 * held, (mode, held, more, whole)


def held_and_more(checkpoint: Checkpoint) -> tuple[int, int]:
    """Bytes that a loaded model holds, and what was held beside them while it was loaded."""
    with growth() as grown:
        held = held_bytes(build(checkpoint, "float32"))
    return held, grown.peak - held


def test_a_file_that_was_cut_off_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    mx.save_safetensors(str(path), random_tensors(config_json("gemma")))
    source = SafetensorsFolder(tmp_path)
    name = "language_model.model.layers.2.mlp.down_proj.weight"
    source.read_part(name, 0, range(1))
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(InputError, match="cut off"):
        source.read_part(name, 1, range(1, 5))
