"""Every form in which a float checkpoint folder comes gives the same model; loading holds it in memory once."""

import json
from pathlib import Path

import mlx.core as mx
import pytest
from helpers.memory import growth
from helpers.models import (
    FAMILIES,
    Json,
    Tensors,
    channels_second,
    config_json,
    distance,
    model_of,
    one_line_error,
    pictures,
    random_ids,
    random_tensors,
    same,
    text_logits,
    write_folder,
)
from mlx.utils import tree_flatten

from pg_mlx import PaliGemma, load_model
from pg_mlx.checkpoint.layouts import HEAD

EMBEDDING = "language_model.model.embed_tokens.weight"


@pytest.fixture(params=FAMILIES)
def raw(request: pytest.FixtureRequest) -> Json:
    return config_json(request.param)


@pytest.fixture
def tensors(raw: Json) -> Tensors:
    return random_tensors(raw)


@pytest.fixture
def expected(raw: Json, tensors: Tensors) -> mx.array:
    return text_logits(model_of(raw, tensors))


def loads(folder: Path) -> PaliGemma:
    return load_model(folder, dtype="float32")


def write_shards(folder: Path, raw: Json, tensors: Tensors, shards: int) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(raw))
    names, weight_map = sorted(tensors), {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        chosen = names[shard::shards]
        mx.save_safetensors(str(folder / file), {name: tensors[name] for name in chosen})
        weight_map |= dict.fromkeys(chosen, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


# --- layouts ----------------------------------------------------------------------------------------


def transformers_4_52(name: str) -> str:
    return "model." + name.replace("language_model.model.", "language_model.")


def transformers_5_in_memory(name: str) -> str:
    return transformers_4_52(name).replace("vision_tower.vision_model.", "vision_tower.")


def bare_transformers_5(name: str) -> str:
    return transformers_5_in_memory(name).removeprefix("model.")


RENAMINGS = [str, transformers_4_52, transformers_5_in_memory, bare_transformers_5]


@pytest.mark.parametrize("rename", RENAMINGS, ids=["classic", "4.52", "5 in memory", "5 bare"])
@pytest.mark.parametrize("kernel", ["OHWI", "OIHW"])
def test_layouts_are_the_same_model(
    raw: Json, tensors: Tensors, expected: mx.array, rename: type[str], kernel: str, tmp_path: Path
) -> None:
    stored = tensors if kernel == "OHWI" else channels_second(tensors)
    folder = write_folder(tmp_path, raw, {rename(name): tensor for name, tensor in stored.items()})
    assert same(text_logits(loads(folder)), expected)


@pytest.mark.parametrize("name", [
    "vision_tower.vision_model.embeddings.position_ids",
    "model.vision_tower.embeddings.position_ids",
    "language_model.model.layers.0.self_attn.rotary_emb.inv_freq",
    "vision_tower.vision_model.head.probe",
])  # fmt: skip
def test_tensors_that_no_model_needs_are_ignored(
    raw: Json, tensors: Tensors, expected: mx.array, name: str, tmp_path: Path
) -> None:
    copy = tensors[EMBEDDING] + 1
    assert same(text_logits(loads(write_folder(tmp_path, raw, tensors | {name: copy}))), expected)


@pytest.mark.parametrize("shards", [1, 3])
def test_shards_with_an_index(raw: Json, tensors: Tensors, expected: mx.array, shards: int, tmp_path: Path) -> None:
    folder = write_shards(tmp_path, raw, tensors, shards)
    assert same(text_logits(loads(folder)), expected)
    mx.save_safetensors(str(folder / "optimizer.safetensors"), {"stray": mx.zeros(1)})
    (folder / "model.safetensors.index.json").unlink()
    assert same(text_logits(loads(folder)), expected)


def test_dimensions_may_come_from_tensors_alone(
    raw: Json, tensors: Tensors, expected: mx.array, tmp_path: Path
) -> None:
    family, head_dim = raw["text_config"]["model_type"], raw["text_config"]["head_dim"]
    scalars = {key: value for key, value in raw["text_config"].items() if "soft" in key or "query" in key}
    text = {"model_type": family, "head_dim": head_dim, **scalars}
    short = {"text_config": text, "vision_config": {"num_attention_heads": 2}}
    assert same(text_logits(loads(write_folder(tmp_path, short, tensors))), expected)


def test_config_and_embedding_must_agree_on_the_rows(raw: Json, tensors: Tensors, tmp_path: Path) -> None:
    """257152 rows or 257216 are both right; saying one and holding the other is not."""
    more = tensors | {EMBEDDING: mx.concatenate([tensors[EMBEDDING], mx.zeros((64, 32))])}
    with one_line_error("vocab_size", "96", "160"):
        loads(write_folder(tmp_path / "more rows", raw, more))
    raw["text_config"]["vocab_size"] = 160
    assert loads(write_folder(tmp_path / "agreed", raw, more)).config.text.vocab_size == 160
    with one_line_error("vocab_size", "96", "160"):
        loads(write_folder(tmp_path / "fewer rows", raw, tensors))


# --- dtypes and memory ------------------------------------------------------------------------------

DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16, "float16": mx.float16}


@pytest.mark.parametrize("stored", DTYPES)
def test_stored_dtypes_load_exactly(raw: Json, tensors: Tensors, stored: str, tmp_path: Path) -> None:
    """float32 holds every 16-bit number, so a 16-bit file equals its widened tensors bit by bit."""
    narrow = {name: tensor.astype(DTYPES[stored]) for name, tensor in tensors.items()}
    widened = {name: tensor.astype(mx.float32) for name, tensor in narrow.items()}
    folder = write_folder(tmp_path, raw, narrow)
    assert same(text_logits(loads(folder)), text_logits(model_of(raw, widened)))


@pytest.mark.parametrize("stored", DTYPES)
@pytest.mark.parametrize("asked", DTYPES)
def test_compute_dtype_is_what_was_asked_for(asked: str, stored: str, tmp_path: Path) -> None:
    """Parameters, features and cache; norms (which compute in float32) and logits are always float32."""
    raw = config_json("gemma2")
    narrow = {name: tensor.astype(DTYPES[stored]) for name, tensor in random_tensors(raw).items()}
    folder = write_folder(tmp_path, raw, narrow)
    for dtype in (asked, DTYPES[asked]):
        model = load_model(folder, dtype=dtype)
        assert model.dtype == DTYPES[asked]
        parameters = tree_flatten(model.parameters())
        assert {array.dtype for name, array in parameters if "norm" not in name} == {DTYPES[asked]}
        assert {array.dtype for name, array in parameters if "norm" in name} == {mx.float32}
        features = pictures(model)
        logits, cache = model.prefill(features, random_ids(1, 4), capacity=16)
        step_logits, cache = model.step(mx.array([3]), cache)
        assert {features.dtype, *(array.dtype for array in (*cache.keys, *cache.values))} == {DTYPES[asked]}
        assert {logits.dtype, step_logits.dtype, text_logits(model).dtype} == {mx.float32}


def test_sixteen_bits_stay_near_float32(raw: Json, tensors: Tensors, expected: mx.array) -> None:
    """A bound that only a mistake exceeds: logits are about 1, bfloat16 keeps 3 digits, over 3 layers."""
    assert distance(text_logits(model_of(raw, tensors, "float16")), expected) < 0.02
    assert distance(text_logits(model_of(raw, tensors, "bfloat16")), expected) < 0.15


@pytest.mark.parametrize("dtype", ["float64", "int8", "", "bf16", "float\n16"])
def test_unknown_dtypes_are_errors(dtype: str, tmp_path: Path) -> None:
    raw = config_json("gemma")
    folder = write_folder(tmp_path, raw, random_tensors(raw))
    with one_line_error("bfloat16", repr(dtype)):
        load_model(folder, dtype=dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loading_holds_the_model_once(dtype: str, tmp_path: Path) -> None:
    text = dict(hidden_size=768, intermediate_size=3072, head_dim=96, num_attention_heads=8, vocab_size=2048)
    raw = config_json("gemma2", text)
    folder = write_folder(tmp_path, raw, random_tensors(raw))
    file_bytes = (folder / "model.safetensors").stat().st_size
    assert file_bytes > 100e6
    with growth() as grown:
        model = load_model(folder, dtype=dtype)
    print(f"file {file_bytes / 1e6:.0f} MB, model {dtype}: peak {grown.peak / 1e6:.0f} MB")
    held = sum(array.nbytes for _, array in tree_flatten(model.parameters()))
    assert grown.peak <= 1.1 * held + 30e6
    assert 0.99 * held <= grown.now <= 1.01 * held  # all of it is there, and nothing else


def test_progress_counts_up_to_the_end(raw: Json, tensors: Tensors, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    load_model(write_folder(tmp_path, raw, tensors), progress=lambda done, total: calls.append((done, total)))
    total = calls[0][1]
    assert calls == [(done, total) for done in range(total + 1)]


# --- tensors that do not fit ------------------------------------------------------------------------


def test_one_error_lists_missing_surplus_and_misshapen(raw: Json, tensors: Tensors, tmp_path: Path) -> None:
    missing = "vision_tower.vision_model.encoder.layers.0.self_attn.k_proj.bias"
    misshapen = "language_model.model.layers.1.mlp.down_proj.weight"
    del tensors[missing]
    tensors |= {misshapen: tensors[misshapen].T, "language_model.model.layers.1.mlp.router.weight": mx.zeros((2, 2))}
    with one_line_error(missing, misshapen, "[40, 32]", "[32, 40]", "router", "1 missing", "1 misshapen", "1 surplus"):
        loads(write_folder(tmp_path, raw, tensors))


def test_every_tensor_is_needed(raw: Json, tensors: Tensors, tmp_path: Path) -> None:
    for name in tensors:
        rest = {other: tensor for other, tensor in tensors.items() if other != name}
        with one_line_error(name):
            model_of(raw, rest)


def test_every_shape_is_checked(raw: Json, tensors: Tensors) -> None:
    for name, tensor in tensors.items():
        for wrong in (tensor[:-1], tensor[None], mx.zeros(())):
            with one_line_error():
                model_of(raw, tensors | {name: wrong})


def test_an_untied_head_is_not_silently_dropped(raw: Json, tensors: Tensors, tmp_path: Path) -> None:
    """Whatever config.json says of it, and whatever it is called."""
    head = mx.contiguous(tensors[EMBEDDING][::-1])
    expected = text_logits(model_of(raw | {"tie_word_embeddings": False}, tensors | {f"{HEAD}.weight": head}))
    assert distance(expected, text_logits(model_of(raw, tensors))) > 1
    for tied in (True, False):
        for name in ("lm_head.weight", f"{HEAD}.weight"):
            folder = write_folder(
                tmp_path / f"{tied} {name}", raw | {"tie_word_embeddings": tied}, tensors | {name: head}
            )
            assert same(text_logits(loads(folder)), expected)


def test_a_head_of_another_size_is_refused(raw: Json, tensors: Tensors) -> None:
    with one_line_error("lm_head"):
        model_of(raw, tensors | {f"{HEAD}.weight": tensors[EMBEDDING][1:]})


STRANGE_NAMES = [
    "a\nb",
    "language_model.model.layers.3.x",
    "language_model.model.layers.٣.x",
    f"language_model.model.layers.{'9' * 5000}.x",
]


@pytest.mark.parametrize("stray", STRANGE_NAMES, ids=lambda name: ascii(name[:40]))
def test_strange_names_of_surplus_tensors(stray: str, raw: Json, tensors: Tensors, tmp_path: Path) -> None:
    with one_line_error():
        loads(write_folder(tmp_path, raw, tensors | {stray: mx.zeros(1)}))
