"""Opening a PaliGemma, whatever form it comes in. Loading, converting, comparing and validating all open it here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from ..config import PaliGemmaConfig, is_tied
from ..errors import InputError
from ..files.json import read_json
from ..files.regular import expanded, refuse_pointer
from ..files.safetensors import check_header
from . import hub
from .adapters.merge import Adapter, adapted
from .adapters.unpacked import UnpackedSource
from .check import check
from .head import has_own_head
from .hub_names import address, cached_snapshot, is_repository, repository_of
from .layouts import WeightSpec, infer_dimensions, weight_specs
from .mask_decoder import find_mask_decoder
from .other_forms import way_out, without_foreign_quantization
from .tensors import SafetensorsFolder, SafetensorsHeaders, Source
from .wanted import BESIDE_THE_TOKENIZER, TOKENIZER, TOKENIZER_BESIDE_ARCHIVE, TOKENIZER_FILES
from .weight_files import archives as archives_among

if TYPE_CHECKING:
    from ..processor import Tokenizer

_GENERATION_CONFIG = "generation_config.json"


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint: its headers have been read, and its tensors fit its config. No weight has been read."""

    name: str
    """What the user called it; for messages."""
    source: Source
    """Its tensors under canonical names."""
    raw_config: Mapping[str, Any]
    """config.json as it is stored."""
    config: PaliGemmaConfig
    specs: tuple[WeightSpec, ...]
    """Every parameter of the model, and the tensors of `source` that it is made of."""
    num_bytes: int = 0
    """Size of its files of weights."""
    dtype: mx.Dtype = mx.float32
    """The stored dtype of its final norm, and so of float tensors in general."""
    side_files: Mapping[str, Path] = field(default_factory=dict)
    """Files of the tokenizer and of generation, by name."""
    preprocessor: Path | None = None
    """The file that says how pictures are prepared: processor_config.json or preprocessor_config.json."""
    mask_decoder: Path | None = None
    """The decoder of <seg> codes that comes with it, if one does."""
    headers_only: bool = False
    """Whether tensors cannot be read and side files are not known, because both were left on the hub."""

    @classmethod
    def of(cls, source: Source, raw_config: Mapping[str, Any], name: str = "the checkpoint", **rest: Any) -> Checkpoint:
        """Parse a config.json and check the tensors against it. rest: other fields. Raises InputError."""
        if isinstance(source, SafetensorsHeaders):
            raw_config = without_foreign_quantization(name, raw_config, source.stored_dtypes)
            if is_tied(raw_config):
                source.take_head_for_embedding()
        config = PaliGemmaConfig.from_dict(raw_config, infer_dimensions(source.shapes))
        config = replace(config, tie_word_embeddings=not has_own_head(source, config))
        specs = tuple(weight_specs(config))
        check(specs, source.shapes, config)
        return cls(name, source, raw_config, config, specs, **rest)

    @property
    def tokenizer(self) -> Path | None:
        """The file of its vocabulary, if it has one."""
        return next((self.side_files[name] for name in TOKENIZER_FILES if name in self.side_files), None)

    def read_tokenizer(self) -> Tokenizer:
        """Its tokenizer. There must be one; raises InputError if it cannot be read."""
        from ..processor import Tokenizer

        return Tokenizer.from_files(self.side_files)

    @cached_property
    def resample(self) -> str:
        """How pictures are resized: "bicubic" or "bilinear". Raises InputError for a wrong preprocessor_config.json."""
        from ..processor import read_resample

        return read_resample(self.preprocessor) if self.preprocessor else "bicubic"

    def is_quantized(self) -> bool:
        """Whether any of its matrices is."""
        return any(name.endswith(".scales") for name in self.source.shapes)

    def with_tokenizer(self, path: str | Path) -> Checkpoint:
        """The same with another tokenizer: a file, or all files of a folder's or a hub repository's. Raises InputError
        if there is none."""
        others = {name: file for name, file in self.side_files.items() if name == _GENERATION_CONFIG}
        return replace(self, side_files=others | tokenizer_files(path))

    def with_tokens_of(self, adapters: Sequence[Adapter]) -> Checkpoint:
        """The same with the files of the adapters' tokenizers in place of its own, where they have any."""
        side_files = dict(self.side_files)
        for adapter in adapters:
            side_files |= _files(adapter.folder, (*TOKENIZER_FILES, *BESIDE_THE_TOKENIZER))
        return replace(self, side_files=side_files)

    def merged(self, adapters: Sequence[Adapter]) -> Checkpoint:
        """The same with LoRA adapters merged into its weights, in this order. Where some are quantized, all are read as
        float32. Raises InputError for an adapter that does not fit."""
        source = UnpackedSource(self.source, self.config, self.specs) if self.is_quantized() else self.source
        source, config, specs = adapted(source, self.config, adapters)
        return replace(self, source=source, config=config, specs=specs)

    def with_adapters(self, adapters: Sequence[Adapter]) -> Checkpoint:
        """The same with adapters, merged into float weights and beside quantized ones. Raises InputError."""
        source, config, specs = adapted(self.source, self.config, adapters, beside=True)
        return replace(self, source=source, config=config, specs=specs)


def open_checkpoint(
    path_or_repo: str | Path,
    *,
    revision: str | None = None,
    tokenizer: str | Path | None = None,
    headers_only: bool = False,
) -> Checkpoint:
    """A Hugging Face or mlx-vlm folder, a hub repository, or a big_vision archive (or a folder with just one of those).

    tokenizer: a file or folder whose tokenizer replaces the checkpoint's. headers_only: download no weights.
    Raises InputError, and PgMlxError if the hub cannot be reached.
    """
    path_or_repo, revision = address(path_or_repo, revision)
    if headers_only and Path(path_or_repo).suffix != ".npz":
        folder = hub.at_hand(path_or_repo, revision)
        checkpoint = _on_hub(str(path_or_repo), revision) if folder is None else open_local(folder, str(path_or_repo))
    else:
        checkpoint = open_local(locate(path_or_repo, revision), str(path_or_repo))
    return checkpoint if tokenizer is None else checkpoint.with_tokenizer(tokenizer)


def locate(path_or_repo: str | Path, revision: str | None = None) -> Path:
    """The local folder or .npz file of a checkpoint; a hub repository is downloaded unless it is cached.

    Raises InputError if there is none, and PgMlxError if the hub cannot be reached.
    """
    path_or_repo, revision = address(path_or_repo, revision)
    if Path(path_or_repo).suffix != ".npz":
        return hub.resolve(path_or_repo, revision)
    path = expanded(path_or_repo)
    if path.is_dir():
        return path
    if not path.exists() and (repo := repository_of(path_or_repo)):
        return hub.resolve_archive(repo, path.name, revision)
    if not path.is_file():
        raise InputError(f"no such file: {path}")
    return path


def open_local(path: str | Path, name: str | None = None) -> Checkpoint:
    """The checkpoint in a local folder or .npz file. name: what messages call it. Raises InputError."""
    path = Path(path)
    if path.is_file():
        return _archive(path, path.name)
    if not path.is_dir():
        raise InputError(f"no such folder: {path}")
    path, name = cached_snapshot(path), name or str(path)
    archives = archives_among(file.name for file in path.iterdir() if file.is_file())
    if archives and not ((path / "config.json").is_file() and any(path.glob("*.safetensors"))):
        if len(archives) > 1:
            raise InputError(f"{name} holds several archives, {', '.join(archives[:5])}; name the file that you mean")
        return _archive(path / archives[0], archives[0])
    return _folder(path, name)


def _on_hub(repo: str, revision: str | None) -> Checkpoint:
    headers = hub.headers(repo, revision)
    checked = ((file, check_header(f"{repo}/{file}", header)) for file, header in headers.files.items())
    source = SafetensorsHeaders(repo, checked)
    return Checkpoint.of(
        source,
        read_json(headers.config),
        repo,
        num_bytes=source.num_bytes,
        dtype=source.float_dtype,
        headers_only=True,
    )


def _archive(path: Path, name: str) -> Checkpoint:
    if path.suffix != ".npz":
        raise InputError(f"{path} is a file, but a folder or an .npz archive is needed{way_out([path.name])}")
    from .big_vision import BigVisionArchive  # and NumPy's part in it, which no other checkpoint needs

    source = BigVisionArchive(path)
    return Checkpoint.of(
        source,
        source.config(),
        name,
        num_bytes=path.stat().st_size,
        dtype=source.float_dtype,
        side_files=_beside(path),
        mask_decoder=find_mask_decoder(path.parent),
    )


def _beside(archive: Path) -> dict[str, Path]:
    """The tokenizer in an archive's folder, under its usual name or, if there is just one, another (Kaggle's)."""
    found = _files(archive.parent, (*TOKENIZER_FILES, *BESIDE_THE_TOKENIZER))
    others = [path for path in archive.parent.glob(TOKENIZER_BESIDE_ARCHIVE) if not path.name.startswith(".")]
    if not set(TOKENIZER_FILES) & set(found) and len(others) == 1:
        found["tokenizer.model"] = others[0]
        refuse_pointer(others[0])
    return found


def _folder(folder: Path, name: str) -> Checkpoint:
    if not (folder / "config.json").is_file():
        paths = list(folder.iterdir())
        folders = {path.name for path in paths if path.is_dir()}
        files = {path.name for path in paths} - folders
        raise InputError(f"{folder} has no config.json, so it is not a checkpoint folder{way_out(files, folders)}")
    source = SafetensorsFolder(folder)
    return Checkpoint.of(
        source,
        read_json(folder / "config.json"),
        name,
        num_bytes=source.num_bytes,
        dtype=source.float_dtype,
        side_files=_files(folder, (*TOKENIZER_FILES, *BESIDE_THE_TOKENIZER, _GENERATION_CONFIG)),
        preprocessor=_preprocessor(folder),
        mask_decoder=find_mask_decoder(folder),
    )


def _preprocessor(folder: Path) -> Path:
    """transformers 5 writes processor_config.json alone; before, that file says nothing of pictures."""
    newer = folder / "processor_config.json"
    if newer.is_file():
        content = read_json(newer)
        if isinstance(content, dict) and "image_processor" in content:
            return newer
    return folder / "preprocessor_config.json"


def tokenizer_files(given: str | Path) -> dict[str, Path]:
    """The tokenizer's files, by name: a file, or those of a folder or a hub repository, downloaded unless it is cached.

    Raises InputError if there are none, and PgMlxError if the hub cannot be reached.
    """
    given, revision = address(given)
    path = expanded(given)
    if path.is_file():
        return {"tokenizer.json" if path.suffix == ".json" else "tokenizer.model": path}
    if not path.exists() and is_repository(given):
        path = hub.resolve(given, revision, TOKENIZER)
    found = _files(path, (*TOKENIZER_FILES, *BESIDE_THE_TOKENIZER))
    if not set(TOKENIZER_FILES) & set(found):
        raise InputError(f"{path} holds no tokenizer: neither tokenizer.model nor tokenizer.json")
    return found


def _files(folder: Path, names: Sequence[str]) -> dict[str, Path]:
    found = {name: folder / name for name in names if (folder / name).is_file()}
    for path in found.values():
        refuse_pointer(path)
    return found
