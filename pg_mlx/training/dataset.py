"""Data from disk to checked examples in three splits. Nothing of a model is loaded for it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import InputError
from ..files.regular import expanded
from ..processor import Processor
from .example import Example
from .faults import Faults
from .formats import Contents, DataOptions, Pictures, read
from .prompts import examples_of, with_longest_codes
from .splits import divide, find_splits, first_of


@dataclass(frozen=True)
class Dataset:
    """Examples, checked: every picture was decoded, every box lies in its picture."""

    train: tuple[Example, ...]
    valid: tuple[Example, ...] = ()
    test: tuple[Example, ...] = ()
    classes: tuple[str, ...] = ()
    """The classes of labelled objects, in the order of the prompt."""
    notes: tuple[str, ...] = ()
    """What is no fault, but worth knowing: one line each."""

    def digest(self) -> str:
        """A number that changes with any text, box or mask, and with the name or size of any picture file.

        It does not change when the folder moves.
        """
        state = hashlib.blake2b(digest_size=16)
        for name in ("train", "valid", "test"):
            for example in getattr(self, name):
                path = Path(str(example.image))
                length = path.stat().st_size if path.is_file() else 0
                row = (name, path.name, length, example.prefix, example.suffix, example.objects, example.image_size)
                state.update(repr(row).encode(errors="surrogatepass"))
        return state.hexdigest()


def read_dataset(
    path: str | Path,
    options: DataOptions | None = None,
    *,
    val_share: float = 0.1,
    seed: int = 0,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Dataset:
    """All splits of a file or folder. Validation data that is not there is divided off the training data.

    val_share: of the pictures, where it is. on_progress: see Pictures. Raises DataError, with a line for each fault,
    and InputError if the data cannot be found at all.
    """
    rows, classes = _read(Path(path), options or DataOptions(), on_progress)
    if "train" not in rows:
        raise InputError(f"{path} holds a {' and a '.join(rows)} split, but none that is called train")
    first = first_of(example for examples in rows.values() for example in examples)
    notes = _notes(rows, first)
    if "valid" not in rows:
        rows["train"], rows["valid"] = divide(rows["train"], val_share, seed, first)
    train, valid, test = (tuple(rows.get(name, ())) for name in ("train", "valid", "test"))
    return Dataset(train, valid, test, classes, notes)


def read_to_evaluate(
    path: str | Path,
    options: DataOptions | None = None,
    *,
    splits: Sequence[str] = ("test", "valid", "train"),
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[str, tuple[Example, ...]]:
    """The first of these splits that is there, by name, and its examples. A file is "train".

    Prompts name the classes of all splits, as in training. Raises as read_dataset.
    """
    rows, _ = _read(Path(path), options or DataOptions(), on_progress)
    name = next((name for name in splits if name in rows), None)
    if name is None:
        raise InputError(f"{path} holds no {' or '.join(splits)} split, only {' and '.join(rows)}")
    return name, tuple(rows[name])


def _read(
    path: Path, options: DataOptions, on_progress: Callable[[int, int], None]
) -> tuple[dict[str, list[Example]], tuple[str, ...]]:
    """The examples of each split, and the classes."""
    path, faults = expanded(path), Faults()
    if options.images is not None and not options.images.is_dir():
        raise InputError(f"there is no folder of pictures {options.images}")
    pictures, contents = Pictures(on_progress), dict[str, Contents]()
    for name, split in find_splits(path).items():
        with faults.at(""):
            own = replace(options, images=options.images or split.images)
            try:
                contents[name] = read(split.path, own, pictures, faults)
            except OSError as error:
                raise InputError(f"cannot read {error.filename or split.path}: {error.strerror}") from None
    faults.check()
    classes = _classes(contents, options)
    rows = {name: [*part.examples, *examples_of(part.pictures, classes, options)] for name, part in contents.items()}
    for name, examples in rows.items():
        if not examples:
            raise InputError(f"{path} holds no example to {'learn from' if name == 'train' else name}")
    return rows, classes


def _classes(contents: dict[str, Contents], options: DataOptions) -> tuple[str, ...]:
    """The classes of all splits together, so that their prompts are the same."""
    found = dict.fromkeys(name for part in contents.values() for name in part.classes)
    if not options.classes:
        return tuple(found)
    wanted = tuple(options.text(" ".join(name.split())) for name in options.classes)
    if unknown := [name for name in wanted if name not in found]:
        raise InputError(
            f"the data has no class {unknown[0]!r}, only {', '.join(found)[:200] or 'rows without classes'}"
        )
    return wanted


def _notes(rows: dict[str, list[Example]], first: Mapping[str, Path]) -> tuple[str, ...]:
    """first: what `first_of` says of all rows."""
    notes = []
    trained = {first[str(example.image)] for example in rows["train"]}
    for name, examples in rows.items():
        shared = {str(example.image) for example in examples if first[str(example.image)] in trained}
        if name != "train" and shared:
            notes.append(f"pictures of {name} that are in train too, so scores will be too good: {len(shared)}")
    return tuple(notes)


@dataclass(frozen=True)
class Lengths:
    """Tokens of examples, in their order. Image tokens are not counted."""

    prefix: tuple[int, ...]
    """With <bos> and newline."""
    suffix: tuple[int, ...]
    """With <eos>."""


def check_lengths(examples: Sequence[Example], processor: Processor, max_seq_length: int | None = None) -> Lengths:
    """How many tokens the examples have. Raises DataError for each one whose prompt and answer together have more than
    `max_seq_length`."""
    faults, prefixes, suffixes = Faults(), list[int](), list[int]()
    known: dict[str, int] = {}  # most examples share their prompt
    for example in examples:
        with faults.at(example.where):
            if example.prefix not in known:
                known[example.prefix] = len(processor.prompt_ids(example.prefix))
            suffix = len(processor.suffix_ids(with_longest_codes(example).suffix))
            prefixes.append(known[example.prefix])
            suffixes.append(suffix)
            if max_seq_length is not None and (total := known[example.prefix] + suffix) > max_seq_length:
                raise InputError(
                    f"prompt and answer have {total} tokens ({known[example.prefix]} + {suffix}), more than "
                    f"--max-seq-length {max_seq_length}"
                )
    faults.check()
    return Lengths(tuple(prefixes), tuple(suffixes))
