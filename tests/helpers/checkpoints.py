"""What the tests of conversion share."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import mlx.core as mx

from helpers.commands import ROOT
from helpers.models import Tensors, same
from pg_mlx.checkpoint.layouts import weight_specs
from pg_mlx.checkpoint.tensors import SafetensorsFolder, Source
from pg_mlx.config import PaliGemmaConfig
from pg_mlx.files.json import read_json
from pg_mlx.quantization import Quantization

GOLDEN = ROOT / "tests" / "golden"

PACKINGS = [
    *(Quantization(bits, group_size) for bits in (2, 3, 4, 5, 6, 8) for group_size in (32, 64, 128)),
    *(Quantization(4, 32, "mxfp4"), Quantization(4, 16, "nvfp4"), Quantization(8, 32, "mxfp8")),
]

WEIGHTS = "model-00001-of-00001.safetensors"
PARTS_OF_A_FOLDER = [
    "README.md",
    "config.json",
    "generation_config.json",
    WEIGHTS,
    "model.safetensors.index.json",
    "pg_mlx.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
]


def stored(folder: Path) -> Tensors:
    """Every tensor of a folder, under the name and in the dtype that its file has."""
    tensors: Tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        found = mx.load(str(path))
        assert isinstance(found, dict) and not set(found) & set(tensors)
        tensors |= found
    return tensors


def read_all(source: Source) -> Tensors:
    """Every tensor of a checkpoint, under canonical names."""
    return {name: source.read(name) for name in source.shapes}


def assert_same(actual: Tensors, expected: Tensors) -> None:
    """The same names, and under each the same bits."""
    assert sorted(actual) == sorted(expected)
    different = [name for name in actual if not same(actual[name], expected[name])]
    assert not different, different


def config_of(folder: Path) -> PaliGemmaConfig:
    return PaliGemmaConfig.from_dict(read_json(folder / "config.json"))


def matrices(folder: Path) -> list[str]:
    """The modules of a folder that can be packed."""
    found = [spec.sources for spec in weight_specs(config_of(folder)) if spec.kind in ("linear", "embedding")]
    return [name for sources in found for name in sources]


def packings(folder: Path) -> dict[str, Quantization | None]:
    """How each of its matrices is packed, as its tensors say."""
    shapes = SafetensorsFolder(folder).shapes
    columns = {name: spec.columns for spec in weight_specs(config_of(folder)) for name in spec.sources}
    return {
        name: Quantization.recognise(
            shapes[f"{name}.weight"][1], shapes[f"{name}.scales"][1], columns[name], f"{name}.biases" in shapes
        )
        if f"{name}.scales" in shapes
        else None
        for name in matrices(folder)
    }


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a folder, to see later whether they were touched."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def names(folder: Path) -> list[str]:
    """What lies in a folder, hidden leftovers included."""
    return sorted(path.name for path in folder.iterdir())


def convert_py(*arguments: str | Path, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """convert.py in a process of its own."""
    return subprocess.run(
        [sys.executable, str(ROOT / "convert.py"), *map(str, arguments)],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
