"""What a run writes of what it has learnt: an adapter's folder, or a whole checkpoint."""

from __future__ import annotations

from pathlib import Path

from ..checkpoint.adapters.peft_writer import write_peft
from ..checkpoint.disassemble import stored_weights
from ..checkpoint.open import Checkpoint
from ..conversion.side_files import write_side_files
from ..files.shards import ShardWriter
from ..ops.device import dtype_name
from ..paligemma import PaliGemma
from .adapting import TrainedAdapter
from .state import Write

_ONE_FILE = 1 << 62
"""All weights in one file, which can be replaced whole, whatever its size."""


def adapter_writer(adapter: TrainedAdapter, base: str, revision: str | None, dropout: float) -> Write:
    """Writes adapter_model.safetensors and adapter_config.json. base: what the config names."""

    def write(folder: Path) -> None:
        write_peft(folder, adapter.tensors(), adapter.scales(), base=base, revision=revision, dropout=dropout)

    return write


def checkpoint_writer(model: PaliGemma, checkpoint: Checkpoint) -> Write:
    """Writes a checkpoint as `convert` does, in the dtype of the model. checkpoint: what the model was loaded from."""

    def write(folder: Path) -> None:
        writer = ShardWriter(folder, shard_bytes=_ONE_FILE)
        for name, array in stored_weights(model):
            writer.add(name, array.astype(model.dtype))
        writer.close()
        write_side_files(folder, checkpoint, model.config, dtype_name(model.dtype))

    return write
