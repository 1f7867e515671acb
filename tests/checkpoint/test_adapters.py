"""Adapters from PEFT and mlx-vlm, merged into the weights that they were made for, are the same fine-tuned model.

What is expected is computed here in numpy, or was by transformers and PEFT (the golden adapters).
"""

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from helpers import commands as commands
from helpers.adapters import (
    CONNECTOR,
    DOWN,
    EMBEDDING,
    LAYER,
    TOLERANCE,
    K,
    O,
    Q,
    Trained,
    agree,
    every_case,
    is_packed,
    opened,
    wide,
    write_adapter,
)
from helpers.models import (
    Memory,
    Tensors,
    channels_second,
    distance,
    load_packed,
    model_of,
    quantized,
    same,
    text_logits,
    write_folder,
)
from helpers.paths import GOLDEN

from pg_mlx import load_model
from pg_mlx.checkpoint.adapters.merge import Adapter
from pg_mlx.checkpoint.layouts import PATCH_KERNEL
from pg_mlx.checkpoint.load import build
from pg_mlx.checkpoint.open import Checkpoint
from pg_mlx.checkpoint.tensors import SafetensorsFolder

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
@every_case
def test_every_tensor_is_merged_in_every_style(make: Callable[[Tensors], Trained], style: str, tmp_path: Path) -> None:
    _, tensors = wide()
    trained = make(tensors)
    source = opened(tensors, trained.save(tmp_path / "adapter", STYLES[style]))
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
    found = opened(narrow, *folders).read(f"{Q}.weight")
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
        agree(load_packed(quantized_base, dtype="float32", adapter_path=paths), model_of(raw, dequantized))


def test_an_adapter_can_be_used_again(tmp_path: Path) -> None:
    raw, tensors = wide()
    adapter = Adapter(Trained(tensors).low_rank(Q).whole(f"{CONNECTOR}.weight").save(tmp_path / "adapter"))
    first, second = (build(Checkpoint.of(Memory(tensors), raw).with_adapters([adapter]), "float32") for _ in range(2))
    assert same(text_logits(first), text_logits(second))


def test_embedding_copies_are_not_changes(tmp_path: Path) -> None:
    """PEFT saves the frozen table beside an adapter of it."""
    _, tensors = wide()
    trained = Trained(tensors, ensure_weight_tying=True).embedding(EMBEDDING)
    trained.tensors[f"{EMBEDDING}.base_layer.weight"] = np.zeros(tensors[f"{EMBEDDING}.weight"].shape, np.float32)
    source = opened(tensors, trained.save(tmp_path / "adapter"))
    assert distance(source.read(f"{EMBEDDING}.weight"), trained.applied(tensors)[f"{EMBEDDING}.weight"]) <= 1e-5


def test_fan_in_fan_out_is_transposed(tmp_path: Path) -> None:
    _, tensors = wide()
    a, b = np.random.default_rng(0).normal(size=(2, 4, 128)).astype(np.float32)
    folder = write_adapter(
        tmp_path / "a", {f"{O}.lora_A.weight": a, f"{O}.lora_B.weight": b.T}, fan_in_fan_out=True, lora_alpha=4
    )
    found = opened(tensors, folder).read(f"{O}.weight")
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
    source = opened(tensors, folder)
    for module in (Q, K):
        name = f"{module}.weight"
        assert distance(source.read(name), trained.applied(tensors)[name]) <= 1e-5


def test_patch_kernels_in_pytorchs_order(tmp_path: Path) -> None:
    raw, tensors = wide()
    trained = Trained(tensors).whole(PATCH_KERNEL)
    expected = model_of(raw, trained.applied(tensors))
    trained.tensors[PATCH_KERNEL] = trained.tensors[PATCH_KERNEL].transpose(0, 3, 1, 2)
    base = write_folder(tmp_path / "base", raw, channels_second(tensors))
    agree(load_model(base, dtype="float32", adapter_path=trained.save(tmp_path / "adapter")), expected)


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
