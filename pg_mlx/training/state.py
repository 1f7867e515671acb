"""The folder of a run: what it has learnt, what it needs to go on, and what a person wants to look at.

Every file is replaced whole, and the folder appears whole with the first save. So whenever the process dies, there is
either no folder or one that loads and can go on. state.safetensors alone says how far the run is: all that was written
for later steps is written again, with the same content.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from .. import __version__
from ..checkpoint.wanted import ADAPTER_CONFIG
from ..checkpoint.weight_files import ADAPTER_WEIGHTS
from ..errors import InputError, PgMlxError
from ..files.folder import PARTIAL_MARK, check_target, is_unfinished, whole_files, whole_folder
from ..files.json import read_json
from .settings import TrainSettings

if TYPE_CHECKING:
    from PIL import Image

STATE, RUN, LOG, CARD = "state.safetensors", "run.json", "log.jsonl", "README.md"
CURVE, ANSWERS = "curve.png", "answers.png"
BEST, MODEL = "best", "model"
WRITTEN_BY = "pg-mlx train"

_FILES = (*ADAPTER_WEIGHTS[:1], ADAPTER_CONFIG, STATE, LOG, CARD, CURVE, ANSWERS, PARTIAL_MARK, RUN)
_MAX_LOG_BYTES = 1 << 30

Write = Callable[[Path], None]
"""Writes what was learnt into an empty folder: an adapter's files, or those of a checkpoint."""


@dataclass(frozen=True)
class RunProgress:
    """How far a run is, beside its weights."""

    step: int = 0
    """How many steps are done."""
    trained_tokens: int = 0
    best_step: int | None = None
    best_key: tuple[float, ...] = ()
    """The key of the best evaluation; the larger the better."""
    since_best: int = 0
    """Evaluations since the best one."""


@dataclass(frozen=True)
class Begun:
    """What a run folder says of the run that began it."""

    settings: TrainSettings
    digest: str
    """The digest of the data, as Dataset.digest gives it, mixed data included."""
    made: dict[str, Any] = field(default_factory=dict)
    """What was decided for this machine and must stay: rows at a time, checkpointing."""


class RunFolder:
    """The folder OUT of a run. full: it holds a whole checkpoint in OUT/model instead of an adapter's files."""

    def __init__(self, path: str | Path, full: bool = False, force: bool = False):
        self.path = Path(path).expanduser()
        self._full, self._force = full, force
        self._begun = False
        self._pending: list[str] = []

    # --- a new run --------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raises InputError if a new run may not write here."""
        if self.path.exists() and not self._force and (self.path / RUN).is_file():
            raise InputError(
                f"{self.path} holds a run already: --resume goes on with it, --force begins anew in its place"
            )
        check_target(self.path, self._force, owned)

    def begin(self, begun: Begun) -> None:
        """Remember what run.json will hold; nothing is written before the first save."""
        self._head = {
            "written_by": WRITTEN_BY,
            "versions": {"pg_mlx": __version__, "mlx": version("mlx")},
            "settings": begun.settings.to_json(),
            "data_digest": begun.digest,
            "made": begun.made,
        }

    # --- saving -----------------------------------------------------------------------------------------------------

    @property
    def exists(self) -> bool:
        """Whether this run has been saved before."""
        return self._begun

    def save(self, write: Write, state: Mapping[str, mx.array], progress: RunProgress) -> None:
        """Put what was learnt, and the state, in place of what is there. Raises PgMlxError if the disk does not take
        them; the folder then is as it was."""
        try:
            if self._begun:
                with whole_files(self.path) as folder:
                    _write_state(folder / STATE, state, progress)
                    if not self._full:
                        write(folder)
                if self._full:
                    with whole_files(self.path / MODEL) as folder:
                        write(folder)
            else:
                self._first_save(write, state, progress)
        except OSError as error:
            raise PgMlxError(f"{self.path} cannot be written: {error.strerror or error}") from error

    def _first_save(self, write: Write, state: Mapping[str, mx.array], progress: RunProgress) -> None:
        with whole_folder(self.path, self._force, owned) as folder:
            place = folder / MODEL if self._full else folder
            place.mkdir(exist_ok=True)
            write(place)
            _write_state(folder / STATE, state, progress)
            (folder / RUN).write_text(json.dumps(self._head, indent=1) + "\n", encoding="utf-8")
            (folder / LOG).write_text("".join(self._pending), encoding="utf-8")
        self._begun, self._pending = True, []

    def save_best(self, write: Write) -> None:
        """What was learnt, as the best so far. The run must have been saved before."""
        with whole_files(self.path / BEST) as folder:
            write(folder)

    def write_card(self, text: str) -> None:
        """README.md."""
        with whole_files(self.path) as folder:
            (folder / CARD).write_text(text, encoding="utf-8")

    def write_pictures(self, pictures: Mapping[str, Image.Image]) -> None:
        """Pictures by file name."""
        with whole_files(self.path) as folder:
            for name, image in pictures.items():
                image.save(folder / name)

    def log(self, line: Mapping[str, Any]) -> None:
        """A line of log.jsonl. Before the first save it waits."""
        text = json.dumps(line) + "\n"
        if not self._begun:
            self._pending.append(text)
            return
        descriptor = os.open(self.path / LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)

    # --- going on ---------------------------------------------------------------------------------------------------

    def read_begun(self) -> Begun:
        """What run.json says. Raises InputError if there is no run here."""
        if not (self.path / RUN).is_file():
            raise InputError(f"{self.path} holds no run to go on with (no {RUN})")
        head = read_json(self.path / RUN)
        try:
            if head["written_by"] != WRITTEN_BY:
                raise KeyError
            return Begun(TrainSettings.from_json(head["settings"]), str(head["data_digest"]), dict(head["made"]))
        except (KeyError, TypeError, AttributeError):
            raise InputError(f"{self.path / RUN} was not written by {WRITTEN_BY}") from None

    def resume(self) -> tuple[dict[str, mx.array], RunProgress]:
        """The state of the last save. What log.jsonl says of later steps is removed from it, and what a killed process
        has left. Raises InputError if the state cannot be read."""
        try:
            loaded: Any = mx.load(str(self.path / STATE), return_metadata=True)
            state, metadata = loaded
            values = json.loads(metadata["progress"])
            progress = RunProgress(**values | {"best_key": tuple(values["best_key"])})
            mx.eval(state)
        except (RuntimeError, OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{self.path / STATE} is not the state of a run: {error}") from None
        self._begun = True
        return state, progress

    def forget_after(self, step: int) -> None:
        """Remove what log.jsonl says of later steps: they will be done again."""
        lines = [line for line in read_log(self.path) if line.get("step", 0) <= step and line["event"] != "ended"]
        with whole_files(self.path) as folder:
            (folder / LOG).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of log.jsonl. A last line that a killed process did not complete is left out."""
    path, lines = folder / LOG, []
    if not path.is_file() or path.stat().st_size > _MAX_LOG_BYTES:
        return []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and "event" in line:
            lines.append(line)
    return lines


def owned(folder: Path) -> list[Path]:
    """Everything in a run folder, in the order in which it may be deleted. Raises InputError that names the first thing
    that no run wrote."""
    paths = sorted(folder.iterdir())
    if paths and not any(path.name == RUN for path in paths):
        raise InputError(f"{folder} is no run folder, so it is not replaced")
    found = list[Path]()
    for path in paths:
        directory = stat.S_ISDIR(path.lstat().st_mode)
        if directory and (path.name in (BEST, MODEL) or is_unfinished(path)):
            found += [*_plain_files(path), path]
        elif directory or path.name not in _FILES or not stat.S_ISREG(path.lstat().st_mode):
            raise InputError(f"{folder} holds {path.name}, which no run wrote, so it is not replaced; move it away")
        elif path.name != RUN:
            found.append(path)
    return [*found, folder / RUN] if paths else []


def _plain_files(folder: Path) -> list[Path]:
    paths = sorted(folder.iterdir())
    for path in paths:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise InputError(f"{folder} holds {path.name}, which no run wrote, so it is not replaced; move it away")
    return paths


def _write_state(path: Path, state: Mapping[str, mx.array], progress: RunProgress) -> None:
    mx.save_safetensors(str(path), dict(state), {"progress": json.dumps(asdict(progress))})
