"""Adapters from PEFT and mlx-vlm: merged into float weights or beside packed ones, they are the same fine-tuned model.

What is expected is computed here in numpy, or was by transformers and PEFT (the golden adapters).
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import command_fixtures as commands
import mlx.core as mx
import numpy as np
import pytest
from model_fixtures import (
    FAMILIES,
    Json,
    Memory,
    Tensors,
    channels_second,
    distance,
    greedy,
    model_of,
    one_line_error,
    pictures,
    quantized,
    random_ids,
    random_tensors,
    same,
    text_logits,
    wide_config_json,
    write_folder,
)

from pg_mlx import PaliGemma, load, load_model
from pg_mlx.checkpoint.adapters import AdaptedSource, Adapter
from pg_mlx.checkpoint.layouts import PATCH_KERNEL
from pg_mlx.checkpoint.load import build
from pg_mlx.checkpoint.safetensors import SafetensorsFolder
from pg_mlx.linear import Linear, Parallel
from pg_mlx.quantization import pad_columns, pad_rows

GOLDEN = Path(__file__).parent / "golden"
TOLERANCE = 1e-4
LAYER = "language_model.model.layers"  # of three; the last one takes rows of its fused projection apart
VISION_LAYER = "vision_tower.vision_model.encoder.layers.0"
EMBEDDING = "language_model.model.embed_tokens"
CONNECTOR = "multi_modal_projector.linear"
POSITIONS = "vision_tower.vision_model.embeddings.position_embedding"
PATCHES = PATCH_KERNEL.removesuffix(".weight")
Q, K, O = (f"{LAYER}.2.self_attn.{part}_proj" for part in "qko")  # noqa: E741
GATE, DOWN = f"{LAYER}.0.mlp.gate_proj", f"{LAYER}.1.mlp.down_proj"

Update = Callable[[np.ndarray], np.ndarray]


class Trained:
    """An adapter in the making: its tensors under canonical module names, and what it makes of float weights."""

    def __init__(self, tensors: Tensors, seed: int = 0, **config: Any):
        self.base = tensors
        self.config = {"peft_type": "LORA", "r": 4, "lora_alpha": 12, **config}
        self.random = np.random.default_rng(seed)
        self.tensors: dict[str, np.ndarray] = {}
        self.updates: list[tuple[str, Update]] = []

    def numbers(self, *shape: int) -> np.ndarray:
        return self.random.normal(0, 0.2, shape).astype(np.float32)

    def low_rank(self, *modules: str, rank: int = 4, scale: float | None = None) -> "Trained":
        """LoRA, or DoRA if the config says so."""
        for module in modules:
            shape = self.base[f"{module}.weight"].shape
            a = self.numbers(rank, *((shape[3], *shape[1:3]) if len(shape) == 4 else shape[1:]))
            b = self.numbers(shape[0], rank)
            self.tensors |= {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
            if len(shape) == 4:  # PyTorch's order of axes
                self.tensors[f"{module}.lora_B.weight"] = b[:, :, None, None]
                a = a.transpose(0, 2, 3, 1)
            delta = (b @ a.reshape(rank, -1)).reshape(shape) * (12 / rank if scale is None else scale)
            length = None
            if self.config.get("use_dora"):
                length = np.abs(self.numbers(shape[0])) + 1
                self.tensors[f"{module}.lora_magnitude_vector"] = length
            self.updates.append((f"{module}.weight", self._update(delta, length)))
        return self

    def _update(self, delta: np.ndarray, length: np.ndarray | None, axis: int = 1) -> Update:
        def update(weight: np.ndarray) -> np.ndarray:
            weight = weight + delta
            if length is None:
                return weight
            return weight * np.expand_dims(length, axis) / np.sqrt((weight**2).sum(axis, keepdims=True))

        return update

    def embedding(self, module: str, rank: int = 4) -> "Trained":
        rows, columns = self.base[f"{module}.weight"].shape
        a, b = self.numbers(rank, rows), self.numbers(columns, rank)
        self.tensors |= {f"{module}.lora_embedding_A": a, f"{module}.lora_embedding_B": b}
        length = None
        if self.config.get("use_dora"):
            length = np.abs(self.numbers(columns)) + 1
            self.tensors[f"{module}.lora_magnitude_vector"] = length
        self.updates.append((f"{module}.weight", self._update((b @ a).T * 12 / rank, length, axis=0)))
        return self

    def whole(self, *names: str) -> "Trained":
        for name in names:
            value = self.numbers(*self.base[name].shape)
            self.tensors[name] = value
            self.updates.append((name, lambda _, value=value: value))
        return self

    def low_rank_bias(self, module: str, scale: float) -> "Trained":
        value = self.numbers(*self.base[f"{module}.bias"].shape)
        self.tensors[f"{module}.lora_B.bias"] = value
        self.updates.append((f"{module}.bias", lambda bias: bias + value * scale))
        return self

    def applied(self, floats: Tensors) -> Tensors:
        """The fine-tuned model."""
        floats = dict(floats)
        for name, update in self.updates:
            floats[name] = mx.array(update(np.array(floats[name].astype(mx.float32))))
        return floats

    def save(self, folder: Path, rename: Callable[[str], str] = "base_model.model.".__add__) -> Path:
        return write_adapter(folder, {rename(name): tensor for name, tensor in self.tensors.items()}, **self.config)


def write_adapter(folder: Path, tensors: dict[str, Any], file: str = "adapter_model", **config: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    mx.save_safetensors(str(folder / f"{file}.safetensors"), {name: mx.array(a) for name, a in tensors.items()})
    return folder


def wide(family: str = "gemma2") -> tuple[Json, Tensors]:
    raw = wide_config_json(family)
    raw["text_config"]["num_hidden_layers"] = 3
    return raw, random_tensors(raw)


CASES: dict[str, Callable[[Tensors], Trained]] = {
    "LoRA": lambda t: Trained(t).low_rank(Q, K, O, GATE, DOWN),
    "LoRA of one part of a fused one": lambda t: Trained(t).low_rank(K, GATE),
    "different ranks": lambda t: Trained(t).low_rank(Q, rank=7).low_rank(K, GATE, rank=1),
    "rsLoRA": lambda t: Trained(t, use_rslora=True).low_rank(Q, DOWN, rank=9, scale=4).low_rank(O, rank=4, scale=6),
    "alpha by name": lambda t: (
        Trained(t, alpha_pattern={r"layers\.2\..*": 2, "down_proj": 8, "k_proj": 99, "proj": 77})
        .low_rank(Q, K, scale=0.5)
        .low_rank(DOWN, scale=2)
        .low_rank(GATE, scale=3)
    ),
    "DoRA": lambda t: Trained(t, use_dora=True).low_rank(Q, O, GATE, DOWN),
    "embedding": lambda t: Trained(t).embedding(EMBEDDING).low_rank(Q),
    "embedding DoRA": lambda t: Trained(t, use_dora=True).embedding(EMBEDDING),
    "head tied by PEFT": lambda t: Trained(t, ensure_weight_tying=True).embedding(EMBEDDING),
    "biases": lambda t: (
        Trained(t, bias="all")
        .whole(f"{VISION_LAYER}.mlp.fc1.bias", f"{VISION_LAYER}.layer_norm1.bias", f"{CONNECTOR}.bias")
        .low_rank(f"{VISION_LAYER}.self_attn.out_proj")
        .low_rank_bias(f"{VISION_LAYER}.self_attn.out_proj", 3)
    ),
    "modules to save": lambda t: Trained(t).whole(f"{CONNECTOR}.weight", f"{CONNECTOR}.bias").low_rank(Q),
    "embedding to save": lambda t: Trained(t).whole(f"{EMBEDDING}.weight"),
    "part of a fused one to save": lambda t: Trained(t).whole(f"{K}.weight").low_rank(Q),
    "norm to save": lambda t: Trained(t).whole("language_model.model.norm.weight"),
    "vision": lambda t: Trained(t).low_rank(
        *(f"{VISION_LAYER}.self_attn.{part}_proj" for part in ("q", "v", "out")),
        *(f"{VISION_LAYER}.mlp.fc{number}" for number in (1, 2)),
        CONNECTOR,
    ),
    "vision embeddings": lambda t: Trained(t).embedding(POSITIONS).low_rank(PATCHES),
}


@pytest.fixture(params=CASES)
def make(request: pytest.FixtureRequest) -> Callable[[Tensors], Trained]:
    return CASES[request.param]


def agree(first: PaliGemma, second: PaliGemma) -> None:
    """On a short text, a long one (for which the CPU unpacks weights), and decoding through the cache."""
    assert distance(text_logits(first), text_logits(second)) <= TOLERANCE
    ids = random_ids(2, 30)
    assert distance(first.logits(pictures(first, 2), ids), second.logits(pictures(second, 2), ids)) <= TOLERANCE
    decoded = (greedy(model, pictures(model, 2), random_ids(2, 5), 4)[1] for model in (first, second))
    assert distance(*decoded) <= TOLERANCE


def is_packed(module: str, weight: mx.array) -> bool:
    return weight.shape[-1] % 64 == 0


# --- numbers of transformers and PEFT ---------------------------------------------------------------


@pytest.mark.parametrize("family", ["pg1", "pg2"])
def test_golden_adapters_of_both_generations(family: str) -> None:
    dump = mx.load(str(GOLDEN / f"{family}_batch1.safetensors"))
    ids, results = dump["input_ids"][:, 16:], []
    for base, adapter in [("classic", "classic"), ("new", "new"), ("classic", "new")]:
        folder = GOLDEN / f"{family}_lora_{adapter}"
        model = load_model(GOLDEN / f"{family}_{base}", dtype="float32", adapter_path=folder)
        results.append(model.logits(model.encode_image(dump["pixel_values"].transpose(0, 2, 3, 1)), ids))
        worst = distance(results[-1], dump["lora_merged_prefill_logits"][:, 16:])
        print(f"{family} {base} with {adapter}: off by {worst:.1e} at most")
        assert worst <= TOLERANCE
    assert distance(results[0], dump["prefill_logits"][:, 16:]) > 1
    assert same(results[0], results[1]) and same(results[0], results[2])


# --- merged -----------------------------------------------------------------------------------------


def new(name: str) -> str:
    return "base_model.model.model." + name.replace("language_model.model.", "language_model.")


STYLES: dict[str, Callable[[str], str]] = {
    "classic": "base_model.model.".__add__,
    "4.52": new,
    "5": lambda name: new(name).replace("vision_model.", ""),
    "bare": lambda name: name,
    "adapter's name": lambda name: (
        f"base_model.model.{name}".replace(".weight", ".default.weight").replace(
            "lora_embedding_A", "lora_embedding_A.default"
        )
        if "lora_" in name
        else name
    ),
    "DoRA's weight": lambda name: name + ".weight" if name.endswith("vector") else name,
    "wrapped": lambda name: (
        name
        if "lora_" in name
        else name.replace(".bias", ".base_layer.bias").replace(".weight", ".modules_to_save.default.weight")
    ),
}


@pytest.mark.parametrize("style", STYLES)
def test_every_tensor_is_merged_in_every_style(make: Callable[[Tensors], Trained], style: str, tmp_path: Path) -> None:
    _, tensors = wide()
    trained = make(tensors)
    source = AdaptedSource(Memory(tensors), [Adapter(trained.save(tmp_path / "adapter", STYLES[style]))])
    expected = trained.applied(tensors)
    changed = {name for name, _ in trained.updates}
    for name in tensors:
        if name in changed:
            assert distance(source.read(name), expected[name]) <= 1e-5
            assert distance(source.read(name), tensors[name]) > 0.1
        else:
            assert same(source.read(name), tensors[name])
    assert source.shapes == Memory(tensors).shapes


def test_the_sum_is_rounded_once(tmp_path: Path) -> None:
    _, tensors = wide()
    narrow = {name: tensor.astype(mx.bfloat16) for name, tensor in tensors.items()}
    trained = [Trained(tensors, seed).low_rank(Q) for seed in (1, 2)]
    folders = [one.save(tmp_path / str(seed)) for seed, one in enumerate(trained)]
    found = AdaptedSource(Memory(narrow), [Adapter(folder) for folder in folders]).read(f"{Q}.weight")
    exact = trained[1].applied(trained[0].applied(narrow))[f"{Q}.weight"]
    assert found.dtype == mx.bfloat16
    off = mx.abs(found.astype(mx.float32) - exact)
    assert (off <= mx.abs(exact) * 2**-8 * 1.001).all().item()
    assert (found == exact.astype(mx.bfloat16)).mean().item() > 0.99  # but for sums in another order


def test_several_adapters_apply_in_order(tmp_path: Path) -> None:
    raw, tensors = wide()
    first = Trained(tensors, 1).low_rank(Q, DOWN).whole(f"{CONNECTOR}.weight")
    second = Trained(tensors, 2, use_dora=True).low_rank(Q, K)
    third = Trained(tensors, 3, use_dora=True).low_rank(Q, CONNECTOR).whole(f"{DOWN}.weight")
    order = [first, second, third]
    folders = [one.save(tmp_path / str(index)) for index, one in enumerate(order)]
    base = write_folder(tmp_path / "base", raw, tensors)
    packed_raw, packed, floats = quantized(raw, tensors, is_packed)
    quantized_base = write_folder(tmp_path / "packed", packed_raw, packed)
    for steps in (order, order[::-1]):
        expected, dequantized = tensors, floats
        for one in steps:
            expected, dequantized = one.applied(expected), one.applied(dequantized)
        paths = folders if steps is order else folders[::-1]
        agree(load_model(base, dtype="float32", adapter_path=paths), model_of(raw, expected))
        agree(load_model(quantized_base, dtype="float32", adapter_path=paths), model_of(raw, dequantized))


def test_an_adapter_can_be_used_again(tmp_path: Path) -> None:
    raw, tensors = wide()
    adapter = Adapter(Trained(tensors).low_rank(Q).whole(f"{CONNECTOR}.weight").save(tmp_path / "adapter"))
    first, second = (build(Memory(tensors), raw, "float32", adapters=[adapter]) for _ in range(2))
    assert same(text_logits(first), text_logits(second))


def test_embedding_copies_are_not_changes(tmp_path: Path) -> None:
    """PEFT saves the frozen table beside an adapter of it."""
    _, tensors = wide()
    trained = Trained(tensors).embedding(EMBEDDING)
    trained.tensors[f"{EMBEDDING}.base_layer.weight"] = np.zeros(tensors[f"{EMBEDDING}.weight"].shape, np.float32)
    source = AdaptedSource(Memory(tensors), [Adapter(trained.save(tmp_path / "adapter"))])
    assert distance(source.read(f"{EMBEDDING}.weight"), trained.applied(tensors)[f"{EMBEDDING}.weight"]) <= 1e-5


def test_fan_in_fan_out_is_transposed(tmp_path: Path) -> None:
    _, tensors = wide()
    a, b = np.random.default_rng(0).normal(size=(2, 4, 128)).astype(np.float32)
    folder = write_adapter(
        tmp_path / "a", {f"{O}.lora_A.weight": a, f"{O}.lora_B.weight": b.T}, fan_in_fan_out=True, lora_alpha=4
    )
    found = AdaptedSource(Memory(tensors), [Adapter(folder)]).read(f"{O}.weight")
    assert distance(found, tensors[f"{O}.weight"] + mx.array((b.T @ a).T)) <= 1e-5


MLX_CONFIGS = {
    "mlx-vlm": {"fine_tune_type": "lora", "num_layers": -1, "lora_parameters": {"rank": 5, "dropout": 0, "scale": 3}},
    "older": {"rank": 5, "alpha": 15, "dropout": 0.1},
    "scale": {"rank": 5, "scale": 3},
}


@pytest.mark.parametrize("a, b", [("lora_a", "lora_b"), ("A", "B")])
@pytest.mark.parametrize("config", MLX_CONFIGS)
def test_adapters_of_mlx_vlm(config: str, a: str, b: str, tmp_path: Path) -> None:
    _, tensors = wide()
    trained = Trained(tensors, use_dora=True).low_rank(Q, K, rank=5, scale=3)
    names = {"lora_A.weight": a, "lora_B.weight": b, "lora_magnitude_vector": "m"}
    stored = {}
    for name, array in trained.tensors.items():
        module, part = next((name.removesuffix(end), to) for end, to in names.items() if name.endswith(end))
        stored[module + part] = array.T
    folder = write_adapter(tmp_path / "adapter", stored, "adapters", **MLX_CONFIGS[config])
    source = AdaptedSource(Memory(tensors), [Adapter(folder)])
    for module in (Q, K):
        name = f"{module}.weight"
        assert distance(source.read(name), trained.applied(tensors)[name]) <= 1e-5


# --- beside packed weights --------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_beside_packed_weights(make: Callable[[Tensors], Trained], family: str, tmp_path: Path) -> None:
    raw, tensors = wide(family)
    packed_raw, packed, floats = quantized(raw, tensors, is_packed, 8)
    trained = make(tensors)
    folder = trained.save(tmp_path / "adapter")
    base = write_folder(tmp_path / "base", packed_raw, packed)
    model = load_model(base, dtype="float32", adapter_path=folder)
    assert distance(text_logits(model), text_logits(load_model(base, dtype="float32"))) > 0.01
    agree(model, model_of(raw, trained.applied(floats)))


def test_one_pair_of_thin_matrices_serves_a_fused_projection(tmp_path: Path) -> None:
    raw, tensors = wide()
    packed_raw, packed, _ = quantized(raw, tensors, is_packed)
    adapter = Adapter(Trained(tensors).low_rank(Q, K).save(tmp_path / "adapter"))
    model = build(Memory(packed), packed_raw, "bfloat16", adapters=[adapter])
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
    model = build(Memory(packed), packed_raw, "bfloat16", adapters=[adapter])
    assert model.language_model.layers[2].self_attn.qkv_proj(mx.ones((rows, 128), mx.bfloat16)).dtype == mx.bfloat16
    assert model.prefill(pictures(model), random_ids(1, rows), capacity=64)[1].keys[2].dtype == mx.bfloat16


def test_a_part_that_is_replaced_stands_beside_the_packed_ones(tmp_path: Path) -> None:
    raw, tensors = wide()
    packed_raw, packed, _ = quantized(raw, tensors, is_packed)
    adapter = Adapter(Trained(tensors).whole(f"{K}.weight").save(tmp_path / "adapter"))
    model = build(Memory(packed), packed_raw, adapters=[adapter])
    assert isinstance(model.language_model.layers[2].self_attn.qkv_proj, Parallel)


def test_float_models_gain_nothing_but_the_numbers(tmp_path: Path) -> None:
    raw, tensors = wide()
    adapter = Adapter(Trained(tensors).low_rank(Q).save(tmp_path / "adapter"))
    fused = build(Memory(tensors), raw, adapters=[adapter]).language_model.layers[2].self_attn.qkv_proj
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
    agree(build(Memory(base), base_raw, "float32", adapters=[adapter]), model_of(raw, expected))


def test_patch_kernels_in_pytorchs_order(tmp_path: Path) -> None:
    raw, tensors = wide()
    trained = Trained(tensors).whole(PATCH_KERNEL)
    expected = model_of(raw, trained.applied(tensors))
    trained.tensors[PATCH_KERNEL] = trained.tensors[PATCH_KERNEL].transpose(0, 3, 1, 2)
    base = write_folder(tmp_path / "base", raw, channels_second(tensors))
    agree(load_model(base, dtype="float32", adapter_path=trained.save(tmp_path / "adapter")), expected)


# --- the tied head ----------------------------------------------------------------------------------


def test_a_head_saved_with_the_embedding_gives_way(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    _, tensors = wide()
    trained = Trained(tensors).whole(f"{EMBEDDING}.weight")
    trained.tensors["lm_head.weight"] = trained.tensors[f"{EMBEDDING}.weight"] + 1
    adapter = Adapter(trained.save(tmp_path / "adapter"))
    assert (
        distance(
            AdaptedSource(Memory(tensors), [adapter]).read(f"{EMBEDDING}.weight"),
            trained.applied(tensors)[f"{EMBEDDING}.weight"],
        )
        == 0
    )
    assert "embed_tokens" in capfd.readouterr().err


@pytest.mark.parametrize("head", ["lm_head.lora_A.weight", "language_model.lm_head.lora_B.weight", "lm_head.weight"])
def test_a_head_alone_is_an_error(head: str, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", {head: np.ones((4, 128), np.float32)}, peft_type="LORA", lora_alpha=4)
    with one_line_error("lm_head", "embed_tokens"):
        Adapter(folder)


# --- what cannot be applied -------------------------------------------------------------------------


def opened(tensors: Tensors, folder: Path) -> AdaptedSource:
    return AdaptedSource(Memory(tensors), [Adapter(folder)])


def test_an_adapter_for_another_size(tmp_path: Path) -> None:
    """Said before anything is read, with the module and both shapes, for float and packed models alike."""
    raw, tensors = wide()
    other = wide_config_json("gemma2")
    other["text_config"] |= dict(hidden_size=192, intermediate_size=320, num_hidden_layers=3)
    for module in (Q, GATE, DOWN):
        folder = Trained(random_tensors(other)).low_rank(module).save(tmp_path / module)
        rows, columns = random_tensors(other)[f"{module}.weight"].shape
        for base_raw, base in ((raw, tensors), quantized(raw, tensors, is_packed)[:2]):
            with one_line_error(module, str([rows, columns]), str(list(tensors[f"{module}.weight"].shape)), "size"):
                build(Memory(base), base_raw, adapters=[Adapter(folder)])


@pytest.mark.parametrize("name", [f"{CONNECTOR}.weight", f"{CONNECTOR}.bias", "language_model.model.norm.weight"])
def test_whole_tensors_of_another_size(name: str, tmp_path: Path) -> None:
    _, tensors = wide()
    shape = [1 + size for size in tensors[name].shape]
    folder = write_adapter(tmp_path / "a", {name: np.zeros(shape, np.float32)}, peft_type="LORA")
    with one_line_error(name.rpartition(".")[0], str(shape), str(list(tensors[name].shape))):
        opened(tensors, folder)


def test_a_module_that_does_not_exist(tmp_path: Path) -> None:
    _, tensors = wide()
    trained = Trained(tensors).low_rank(Q)
    folder = trained.save(tmp_path / "a", lambda name: name.replace("layers.2.", "layers.40."))
    with one_line_error("layers.40.self_attn.q_proj", "does not have"):
        opened(tensors, folder)


@pytest.mark.parametrize("lost, words", [
    ("lora_A.weight", "lora_A"),
    ("lora_B.weight", "lora_B"),
    ("lora_magnitude_vector", "lora_magnitude_vector"),
])  # fmt: skip
def test_updates_that_are_not_whole(lost: str, words: str, tmp_path: Path) -> None:
    _, tensors = wide()
    trained = Trained(tensors, use_dora=True).low_rank(Q, O)
    del trained.tensors[f"{O}.{lost}"]
    with one_line_error(O, words):
        opened(tensors, trained.save(tmp_path / "a"))


@pytest.mark.parametrize("shape", [(3, 128), (0, 128), (4,), (), (4, 128, 1), (4, 128, 1, 1, 1)], ids=str)
def test_factors_that_do_not_multiply(shape: tuple[int, ...], tmp_path: Path) -> None:
    _, tensors = wide()
    trained = Trained(tensors).low_rank(O)
    trained.tensors[f"{O}.lora_A.weight"] = trained.numbers(*shape)
    with one_line_error(O, str(list(shape)), "[128, 4]"):
        opened(tensors, trained.save(tmp_path / "a"))


@pytest.mark.parametrize("extra, words", [
    (f"{Q}.lora_B.bias", "bias"),
    (f"{EMBEDDING}.token_adapter.trainable_tokens_delta", "trainable_tokens_delta"),
    (f"{Q}.lora_A.other.weight", "twice"),
    (f"base_model.model.{Q}.lora_A.weight", "twice"),
    ("vision_tower.a\nb.lora_A.weight", "vision_tower"),
])  # fmt: skip
def test_tensors_that_have_no_place(extra: str, words: str, tmp_path: Path) -> None:
    _, tensors = wide()
    trained = Trained(tensors).low_rank(Q)
    trained.tensors[extra] = trained.numbers(4)
    with one_line_error(words):
        opened(tensors, trained.save(tmp_path / "a", str))


@pytest.mark.parametrize("config, words", [
    ({"peft_type": "IA3"}, ("IA3",)),
    ({"peft_type": "PREFIX_TUNING"}, ("PREFIX_TUNING",)),
    ({"peft_type": ["LORA"]}, ("LORA",)),
    ({"use_qalora": True}, ("use_qalora",)),
    ({"trainable_token_indices": [1]}, ("trainable_token_indices",)),
    ({"init_lora_weights": "pissa_niter_4"}, ("pissa_niter_4", "path_initial_model_for_weight_conversion")),
    ({"lora_alpha": None}, ("lora_alpha",)),
    ({"lora_alpha": "16"}, ("lora_alpha", "'16'")),
    ({"lora_alpha": 10**400}, ("lora_alpha",)),
    ({"lora_alpha": float("nan")}, ("lora_alpha",)),
    ({"alpha_pattern": {"(": 3}}, ("alpha_pattern", "'('")),
    ({"alpha_pattern": {"q_proj": []}}, ("lora_alpha",)),
    ({"alpha_pattern": [1]}, ("alpha_pattern",)),
    ({"lora_parameters": 3}, ("lora_parameters",)),
])  # fmt: skip
def test_configs_that_cannot_be_applied(config: Json, words: tuple[str, ...], tmp_path: Path) -> None:
    _, tensors = wide()
    with one_line_error(*words):
        opened(tensors, Trained(tensors, **config).low_rank(Q).save(tmp_path / "a"))


def test_integers_are_no_adapter(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", {f"{Q}.lora_A.weight": np.ones((4, 128), np.int32)}, lora_alpha=1)
    with one_line_error("I32"):
        Adapter(folder)


def test_folders_that_are_no_adapter(tmp_path: Path) -> None:
    _, tensors = wide()
    whole = Trained(tensors).low_rank(Q).save(tmp_path / "whole")
    config = (whole / "adapter_config.json").read_text()
    content = (whole / "adapter_model.safetensors").read_bytes()
    for name in ("nothing here", "x" * 5000, "~nobody-of-that-name/x"):
        with one_line_error("no such adapter folder"):
            Adapter(name)
    with one_line_error("no such adapter folder"):
        Adapter(whole / "adapter_config.json")
    folder = tmp_path / "broken"
    folder.mkdir()
    with one_line_error("adapter_config.json"):
        Adapter(folder)
    for text in ("{", "[]", "3"):
        (folder / "adapter_config.json").write_text(text)
        with one_line_error("adapter_config.json", "JSON"):
            Adapter(folder)
    (folder / "adapter_config.json").write_text(config)
    with one_line_error("adapter_model.safetensors"):
        Adapter(folder)
    (folder / "adapter_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with one_line_error("pickle", "runs code", "save_file"):
        Adapter(folder)
    for size in (0, 7, len(content) // 2, len(content) - 1):
        (folder / "adapter_model.safetensors").write_bytes(content[:size])
        with one_line_error("adapter_model.safetensors"):
            Adapter(folder)
    mx.save_safetensors(str(folder / "adapter_model.safetensors"), {})
    with one_line_error("no tensors"):
        Adapter(folder)


def test_packed_checkpoints_are_not_merged(tmp_path: Path) -> None:
    raw, tensors = wide()
    _, packed, _ = quantized(raw, tensors, is_packed)
    with one_line_error(Q, "quantized", "float checkpoint"):
        opened(packed, Trained(tensors).low_rank(Q).save(tmp_path / "a"))


def test_adapters_are_checked_before_the_checkpoint(tmp_path: Path) -> None:
    with one_line_error("no such adapter folder", "adapter"):
        load("nobody/nothing", adapter_path=tmp_path / "adapter")


# --- the command ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return commands.tiny_checkpoint(tmp_path_factory.mktemp("command") / "checkpoint")


def test_generate_with_adapters(checkpoint: Path, tmp_path: Path) -> None:
    """One that turns the answer into another, and a second one that turns it back."""
    source = SafetensorsFolder(checkpoint)
    tensors = {name: source.read(name).astype(mx.float32) for name in list(source.shapes)}
    there = (
        Trained(tensors).low_rank(f"{LAYER}.0.mlp.down_proj", f"{LAYER}.1.self_attn.q_proj").save(tmp_path / "there")
    )
    stored = mx.load(str(there / "adapter_model.safetensors"))
    flipped = {name: -tensor if "lora_B" in name else tensor for name, tensor in stored.items()}
    back = write_adapter(tmp_path / "back", flipped, peft_type="LORA", lora_alpha=12)

    def answer(*adapters: Path) -> str:
        chosen = (word for adapter in adapters for word in ("--adapter-path", str(adapter)))
        done = commands.run(
            "--model", str(checkpoint), "--image", str(commands.CAT), "--prompt", "caption en", "--max-tokens", "8",
            "--dtype", "float32", *chosen,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    plain = answer()
    assert answer(there) != plain
    assert answer(there, back) == plain


def test_generate_with_a_missing_adapter(checkpoint: Path, tmp_path: Path) -> None:
    done = commands.run(
        "--model", str(checkpoint), "--image", str(commands.CAT), "--adapter-path", str(tmp_path / "nowhere")
    )
    commands.assert_one_line(done, 2, "no such adapter folder")
