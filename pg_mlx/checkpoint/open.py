"""Opening whatever form a PaliGemma comes in."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..config import PaliGemmaConfig
from ..errors import InputError
from ..files.json import read_json
from ..files.safetensors import check_header
from ..processor import read_resample
from . import hub
from .adapters.unpacked import UnpackedSource
from .big_vision import BigVisionArchive
from .layouts import infer_dimensions
from .mask_decoder import PUBLISHED_NAME, find_mask_decoder
from .tensors import SafetensorsFolder, SafetensorsHeaders, Source

SIDE_FILES = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
)


@dataclass(frozen=True)
class Opened:
    """A checkpoint to read from. `open` gives a fresh Source each time, since a tensor can be read only once."""

    name: str
    open: Callable[[], Source]
    config: dict[str, Any]
    side_files: dict[str, Path]
    num_bytes: int
    dtype: mx.Dtype
    """Of its float tensors, as the final norm has it."""
    resample: int = 3
    """How pictures are resized, by Pillow's number: 3 is bicubic, 2 bilinear."""
    mask_decoder: Path | None = None
    """The file of the decoder of <seg> codes that comes with it, if one does."""
    headers_only: bool = False
    """Whether tensors cannot be read and side files were left where they are: on the hub."""


def open_source(
    path_or_repo: str | Path,
    revision: str | None = None,
    tokenizer: Path | None = None,
    adapters: Sequence[str | Path] = (),
    headers_only: bool = False,
) -> Opened:
    """A Hugging Face or mlx-vlm folder, a hub repository, or a big_vision archive (or a folder with just one of those).

    tokenizer: a file or folder whose tokenizer replaces the source's. adapters: PEFT folders to merge, in this order.
    headers_only: download no weights. Raises InputError, and PgMlxError if the hub cannot be reached.
    """
    path = Path(path_or_repo)
    if path.suffix == ".npz":
        with contextlib.suppress(RuntimeError):  # "~nobody/x" has no home to expand to, and is then not found
            path = path.expanduser()
        if not path.is_file():
            raise InputError(f"no such file: {path}")
        opened = _archive(path)
    else:
        folder = (hub.at_hand if headers_only else hub.resolve)(path_or_repo, revision)
        opened = _on_hub(str(path_or_repo), revision) if folder is None else _in_folder(str(path_or_repo), folder)
    if tokenizer is not None:
        kept = {name: path for name, path in opened.side_files.items() if name == "generation_config.json"}
        opened = replace(opened, side_files=kept | _tokenizer_files(tokenizer))
    if adapters:
        opened = _adapted(opened, adapters)
    return opened


def _on_hub(repo: str, revision: str | None) -> Opened:
    headers = hub.headers(repo, revision)
    checked = ((file, check_header(f"{repo}/{file}", header)) for file, header in headers.files.items())
    source = SafetensorsHeaders(repo, checked)
    return Opened(
        repo, lambda: source, read_json(headers.config), {}, source.num_bytes, source.float_dtype, headers_only=True
    )


def _in_folder(name: str, folder: Path) -> Opened:
    archives = [path for path in folder.glob("*.npz") if path.name != PUBLISHED_NAME]
    if not (folder / "config.json").is_file() and len(archives) == 1:
        opened = _archive(archives[0])
    else:
        opened = _folder(name, folder)
    return replace(opened, mask_decoder=find_mask_decoder(folder))


def _archive(path: Path) -> Opened:
    archive = BigVisionArchive(path)
    return Opened(
        path.name, lambda: BigVisionArchive(path), archive.config(), {}, path.stat().st_size, archive.float_dtype
    )


def _folder(name: str, folder: Path) -> Opened:
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} has no config.json, so it is not a checkpoint folder")
    config = read_json(folder / "config.json")
    files = {name: folder / name for name in SIDE_FILES if (folder / name).is_file()}
    resample = 2 if read_resample(folder / "preprocessor_config.json") == "bilinear" else 3
    source = SafetensorsFolder(folder)
    return Opened(
        name, lambda: SafetensorsFolder(folder), config, files, source.num_bytes, source.float_dtype, resample
    )


def _tokenizer_files(path: Path) -> dict[str, Path]:
    if path.is_file():
        name = "tokenizer.json" if path.suffix == ".json" else "tokenizer.model"
        return {name: path}
    found = {name: path / name for name in SIDE_FILES if (path / name).is_file() and name != "generation_config.json"}
    if not {"tokenizer.model", "tokenizer.json"} & set(found):
        raise InputError(f"{path} holds no tokenizer: neither tokenizer.model nor tokenizer.json")
    return found


def _adapted(opened: Opened, adapters: Sequence[str | Path]) -> Opened:
    from .adapters.merge import AdaptedSource, Adapter

    def reopen() -> Source:
        source = opened.open()
        if any(name.endswith(".scales") for name in source.shapes):
            source = UnpackedSource(source, PaliGemmaConfig.from_dict(opened.config, infer_dimensions(source.shapes)))
        return AdaptedSource(source, [Adapter(Path(adapter)) for adapter in adapters])

    reopen()  # a wrong adapter is found now, not halfway
    return replace(opened, open=reopen)
