"""The table that is the head, calibrated: its logits are kept, and its rows are those of the plan."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import pytest
from helpers.models import config_json, random_tensors, write_folder

from pg_mlx.checkpoint.layouts import EMBEDDING, HEAD
from pg_mlx.checkpoint.open import open_local
from pg_mlx.conversion import calibrate, head_table
from pg_mlx.conversion.layerwise import AnsweredPrompt, Streamed
from pg_mlx.conversion.plan import Plan, make_plan
from pg_mlx.quantization import gptq, pack_fitted, pad_rows, uniform

VOCABULARY, WIDTH = 320, 128


@pytest.fixture(params=[True, False], ids=["tied", "own head"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str]:
    """A checkpoint whose table ends where <image> begins, and the name of its head."""
    text = dict(hidden_size=WIDTH, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2, head_dim=64)
    raw = config_json(
        "gemma",
        {**text, "vocab_size": VOCABULARY},
        dict(hidden_size=64, intermediate_size=128),
        image_token_index=VOCABULARY,
        tie_word_embeddings=request.param,
    )
    return write_folder(tmp_path / "model", raw, random_tensors(raw)), EMBEDDING if request.param else HEAD


def states(rows: int = 300) -> mx.array:
    """What reaches a head: its columns depend on each other, as those of a trained model do."""
    keys = mx.random.split(mx.random.key(4), 2)
    return mx.random.normal((rows, 8), key=keys[0]) @ mx.random.normal((8, WIDTH), key=keys[1])


def calibrated(folder: Path, hidden: mx.array) -> tuple[Plan, dict[str, calibrate.Arrays]]:
    checkpoint = open_local(folder)
    plan = make_plan(checkpoint, uniform(3, 64, None))
    pictures = [mx.random.uniform(-1, 1, (1, 28, 28, 3), key=mx.random.key(seed)) for seed in range(2)]
    texts = [AnsweredPrompt(number, [2, 7 + number, 9], [8, 5, 1]) for number in range(2)]
    return plan, dict(calibrate.calibrated(checkpoint, plan.modules, pictures, texts, hidden, mx.bfloat16))


def test_the_head_is_packed_in_its_turn(source: tuple[Path, str]) -> None:
    folder, head = source
    plan, arrays = calibrated(folder, states())
    matrices = [module.name for module in plan.modules if module.kind == "linear" or module.name == head]
    assert list(arrays) == matrices


def test_logits_are_kept_and_rows_are_added(source: tuple[Path, str]) -> None:
    folder, head = source
    hidden = states()
    plan, arrays = calibrated(folder, hidden)
    module = next(module for module in plan.modules if module.name == head)
    assert module.target is not None and module.padded == (VOCABULARY + 64, WIDTH)
    weight = pad_rows(open_local(folder).source.read(f"{head}.weight").astype(mx.float32), VOCABULARY + 64)

    def error(packed: calibrate.Arrays) -> float:
        assert module.target is not None
        return mx.square(hidden @ (module.target.unpack(packed) - weight).T).sum().item()

    assert error(arrays[head]) < 0.3 * error(pack_fitted(weight, module.target, mx.bfloat16))
    assert not module.target.unpack(arrays[head])[VOCABULARY:].any().item()


def test_pieces_of_the_table_are_the_table(source: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, head = source
    checkpoint = open_local(folder)
    module = next(m for m in make_plan(checkpoint, uniform(3, 64, None)).modules if m.name == head)

    def packed() -> calibrate.Arrays:
        return head_table.pack_head(Streamed(checkpoint, mx.float32), module, states(), 0.2, mx.bfloat16, 1)

    whole = packed()
    monkeypatch.setattr(gptq, "VALUES", 100 * WIDTH)
    pieces = packed()
    assert all(mx.array_equal(whole[part], pieces[part]) for part in whole)


def test_what_is_looked_up_is_the_packed_table(source: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The decoder's blocks are packed for what the result will look up."""
    folder, head = source
    seen: list[mx.array] = []
    real = calibrate._texts

    def noting(streamed: Streamed, texts: object, features: object, known: list[int], tables: tuple) -> object:
        seen.extend([mx.array(known), tables[1].weight])
        return real(streamed, texts, features, known, tables)

    monkeypatch.setattr(calibrate, "_texts", noting)
    plan, arrays = calibrated(folder, states())
    module = next(module for module in plan.modules if module.name == EMBEDDING)
    assert module.target is not None
    fitted = pack_fitted(open_local(folder).source.read(f"{EMBEDDING}.weight"), module.target, mx.bfloat16)
    table = module.target.unpack(arrays[EMBEDDING] if head == EMBEDDING else fitted)
    assert mx.allclose(seen[1], table[seen[0]], atol=1e-6)
