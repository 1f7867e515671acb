"""Adapters beside packed weights, which stay packed: the same fine-tuned model as merged into the floats."""

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest
from helpers.adapters import VISION_LAYER, K, O, Q, Trained, agree, every_case, is_packed, wide
from helpers.models import (
    FAMILIES,
    Memory,
    Tensors,
    distance,
    load_packed,
    model_of,
    pictures,
    quantized,
    random_ids,
    text_logits,
    write_folder,
)

from pg_mlx.checkpoint.adapters.merge import Adapter
from pg_mlx.checkpoint.load import build
from pg_mlx.checkpoint.open import Checkpoint
from pg_mlx.linear import Linear, Parallel
from pg_mlx.quantization import pad_columns, pad_rows


@pytest.mark.parametrize("family", FAMILIES)
@every_case
def test_beside_packed_weights(make: Callable[[Tensors], Trained], family: str, tmp_path: Path) -> None:
    raw, tensors = wide(family)
    packed_raw, packed, floats = quantized(raw, tensors, is_packed, 8)
    trained = make(tensors)
    folder = trained.save(tmp_path / "adapter")
    base = write_folder(tmp_path / "base", packed_raw, packed)
    model = load_packed(base, dtype="float32", adapter_path=folder)
    assert distance(text_logits(model), text_logits(load_packed(base, dtype="float32"))) > 0.01
    agree(model, model_of(raw, trained.applied(floats)))


def test_one_pair_of_thin_matrices_serves_a_fused_projection(tmp_path: Path) -> None:
    raw, tensors = wide()
    packed_raw, packed, _ = quantized(raw, tensors, is_packed)
    adapter = Adapter(Trained(tensors).low_rank(Q, K).save(tmp_path / "adapter"))
    model = build(Checkpoint.of(Memory(packed), packed_raw).with_adapters([adapter]), "bfloat16")
    fused = model.language_model.layers[2].self_attn.qkv_proj
    assert isinstance(fused, Linear) and fused.up.shape == (256, 8) and fused.down.shape == (8, 128)
    assert {fused.up.dtype, fused.down.dtype} == {mx.bfloat16}
    assert mx.all(fused.up[:128, 4:] == 0).item() and mx.all(fused.up[128:, :4] == 0).item()
    assert mx.all(fused.up[192:] == 0).item()
    assert "up" not in model.language_model.layers[0].self_attn.qkv_proj


@pytest.mark.parametrize("rows", [1, 40])
@pytest.mark.parametrize("dora", [False, True])
def test_sixteen_bits_stay_sixteen_bits(dora: bool, rows: int, tmp_path: Path) -> None:
    raw, tensors = wide()
    packed_raw, packed, _ = quantized(raw, tensors, is_packed)
    adapter = Adapter(Trained(tensors, use_dora=dora).low_rank(Q, O).save(tmp_path / "adapter"))
    model = build(Checkpoint.of(Memory(packed), packed_raw).with_adapters([adapter]), "bfloat16")
    assert model.language_model.layers[2].self_attn.qkv_proj(mx.ones((rows, 128), mx.bfloat16)).dtype == mx.bfloat16
    assert model.prefill(pictures(model), random_ids(1, rows), capacity=64)[1].keys[2].dtype == mx.bfloat16


def test_a_part_that_is_replaced_stands_beside_the_packed_ones(tmp_path: Path) -> None:
    raw, tensors = wide()
    packed_raw, packed, _ = quantized(raw, tensors, is_packed)
    adapter = Adapter(Trained(tensors).whole(f"{K}.weight").save(tmp_path / "adapter"))
    model = build(Checkpoint.of(Memory(packed), packed_raw).with_adapters([adapter]))
    assert isinstance(model.language_model.layers[2].self_attn.qkv_proj, Parallel)


def test_float_models_gain_nothing_but_the_numbers(tmp_path: Path) -> None:
    raw, tensors = wide()
    adapter = Adapter(Trained(tensors).low_rank(Q).save(tmp_path / "adapter"))
    fused = (
        build(Checkpoint.of(Memory(tensors), raw).with_adapters([adapter])).language_model.layers[2].self_attn.qkv_proj
    )
    assert not {"up", "down", "row_scale"} & fused.keys()


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_a_padded_vision_mlp_takes_adapters_of_the_unpadded(packed: bool, dora: bool, tmp_path: Path) -> None:
    raw, tensors = wide()
    fc1, fc2 = (f"{VISION_LAYER}.mlp.fc{number}" for number in (1, 2))
    trained = Trained(tensors, use_dora=dora).low_rank(fc1, fc2).whole(f"{fc1}.bias")

    def padded(floats: Tensors) -> Tensors:
        wider = {f"{fc1}.{part}": pad_rows(floats[f"{fc1}.{part}"], 128) for part in ("weight", "bias")}
        return floats | wider | {f"{fc2}.weight": pad_columns(floats[f"{fc2}.weight"], 128)}

    expected = padded(trained.applied(tensors))
    raw["vision_config"]["intermediate_size"] = 128
    base_raw, base = raw, padded(tensors)
    if packed:
        base_raw, base, floats = quantized(raw, base, is_packed)
        narrow = {f"{fc1}.weight": floats[f"{fc1}.weight"][:76], f"{fc2}.weight": floats[f"{fc2}.weight"][:, :76]}
        expected = padded(trained.applied(floats | narrow | {f"{fc1}.bias": tensors[f"{fc1}.bias"]}))
    adapter = Adapter(trained.save(tmp_path / "adapter"))
    agree(build(Checkpoint.of(Memory(base), base_raw).with_adapters([adapter]), "float32"), model_of(raw, expected))
