"""Adapters that cannot be applied: one line that names what is wrong, before anything is computed."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from helpers.adapters import CONNECTOR, DOWN, EMBEDDING, GATE, O, Q, Trained, is_packed, opened, wide, write_adapter
from helpers.models import Json, Memory, one_line_error, quantized, random_tensors, wide_config_json

from pg_mlx import load
from pg_mlx.checkpoint.adapters.merge import Adapter
from pg_mlx.checkpoint.load import build
from pg_mlx.checkpoint.open import Checkpoint


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
                build(Checkpoint.of(Memory(base), base_raw).with_adapters([Adapter(folder)]))


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
    (f"{EMBEDDING}.token_adapter.trainable_tokens_delta", "does not list the tokens"),
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
    ({"trainable_token_indices": 3}, ("trainable_token_indices",)),
    ({"modules_to_save": "lm_head"}, ("modules_to_save",)),
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


@pytest.mark.parametrize("head", ["lm_head.lora_A.weight", "language_model.lm_head.lora_B.weight"])
def test_half_an_update_of_the_head_is_an_error(head: str, tmp_path: Path) -> None:
    raw, tensors = wide()
    folder = write_adapter(tmp_path / "a", {head: np.ones((4, 128), np.float32)}, peft_type="LORA", lora_alpha=4)
    with one_line_error("lm_head", "lora_"):
        build(Checkpoint.of(Memory(tensors), raw).with_adapters([Adapter(folder)]))


@pytest.mark.parametrize(
    "ids", [[1, 2], [1, 1, 2], [-1, 2, 3], [True, 2, 3], [1, 2, 10**9], [1, 2, "3"], [[]], {"k": [1]}]
)
def test_trained_tokens_that_are_no_tokens(ids: Any, tmp_path: Path) -> None:
    raw, tensors = wide()
    rows = {f"{EMBEDDING}.token_adapter.trainable_tokens_delta": np.ones((3, 128), np.float32)}
    folder = write_adapter(tmp_path / "a", rows, peft_type="LORA", lora_alpha=4, trainable_token_indices=ids)
    with one_line_error("token"):
        build(Checkpoint.of(Memory(tensors), raw).with_adapters([Adapter(folder)]))


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
