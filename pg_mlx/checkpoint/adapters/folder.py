"""What lies in an adapter's folder: its config, checked, and its one file of tensors."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...files.json import read_json
from .. import hub
from ..hub_names import address, is_repository
from ..wanted import ADAPTER
from ..weight_files import ADAPTER_WEIGHTS

MAX_ROWS = 1 << 22
"""More rows than any vocabulary has."""

_OTHER_VARIANTS = (
    "alora_invocation_tokens", "arrow_config", "kasa_config", "layer_replication", "monteclora_config",
    "target_parameters", "use_bdlora", "use_qalora",
)  # fmt: skip
_CHANGES_THE_BASE = ("pissa", "olora", "corda", "lora_ga", "loftq")


def find_folder(given: str | Path) -> Path:
    """The folder of an adapter: a local one, or a hub repository, downloaded unless it is cached.

    Raises InputError if there is none, and PgMlxError if the hub cannot be reached.
    """
    named, revision = address(given)
    with contextlib.suppress(OSError, RuntimeError):  # a name too long, a folder that may not be read, ~nobody
        path = Path(named).expanduser()
        if path.is_dir():
            return path
        if not path.exists() and is_repository(named):
            return hub.resolve(named, revision, ADAPTER)
    raise InputError(f"no such adapter folder: {given}")


def read_config(path: Path) -> dict[str, Any]:
    """adapter_config.json. Raises InputError for a method that cannot be applied, and for values of a wrong kind."""
    if not path.is_file():
        raise InputError(f"{path.parent} has no adapter_config.json, so it is not an adapter folder")
    config = read_json(path)
    if not isinstance(config, dict):
        raise InputError(f"{path} does not hold a JSON object")
    method = config.get("peft_type", "LORA")
    if method not in ("LORA", "TRAINABLE_TOKENS"):
        raise InputError(f"{path}: adapters of type {method!r} cannot be applied, only 'LORA' and its variants")
    for name in _OTHER_VARIANTS:
        if config.get(name):
            raise InputError(f"{path}: {name} is set, a variant of LoRA that cannot be applied")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_THE_BASE):
        raise InputError(
            f"{path}: init_lora_weights is {start!r}, which changes the base weights too; save the adapter with "
            "PEFT's path_initial_model_for_weight_conversion, which makes it plain LoRA"
        )
    for name in ("alpha_pattern", "lora_parameters"):
        if not isinstance(config.get(name) or {}, dict):
            raise InputError(f"{path}: {name} is not a JSON object")
    for name, kinds in (("trainable_token_indices", (list, dict)), ("token_indices", list), ("modules_to_save", list)):
        if not isinstance(config.get(name) or [], kinds):
            raise InputError(f"{path}: {name} is not a list")
    return config


def token_indices(path: Path, config: dict[str, Any], module: str, trained_as: str) -> list[int]:
    """The tokens whose rows of a table are trained one by one. Raises InputError if they are not ids.

    path: of the config, for messages. module, trained_as: the table's canonical name, and its name where it was
    trained.
    """
    found = config.get("trainable_token_indices") or config.get("token_indices")
    if isinstance(found, dict):  # by the end of a module's name
        own = (f".{module}", f".{trained_as}")
        found = next((ids for name, ids in found.items() if any(table.endswith(f".{name}") for table in own)), None)
    if not isinstance(found, list) or not found or not all(type(n) is int and 0 <= n < MAX_ROWS for n in found):
        raise InputError(f"{path} does not list the tokens of which {module} has trained rows")
    if len(set(found)) != len(found):
        raise InputError(f"{path} lists a token of {module} twice")
    return found


def weight_file(folder: Path) -> Path:
    """The file of tensors. Raises InputError if there is none."""
    for name in ADAPTER_WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    if (folder / "adapter_model.bin").is_file():
        raise InputError(
            f"{folder} has only adapter_model.bin, a pickle, which is refused because unpickling runs code; re-save it "
            'where torch is installed: python -c "import torch, safetensors.torch as s; s.save_file(torch.load('
            "'adapter_model.bin', weights_only=True), 'adapter_model.safetensors')\""
        )
    raise InputError(f"{folder} has no weights: neither adapter_model.safetensors nor adapters.safetensors")
