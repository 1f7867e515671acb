"""Headers of safetensors, changed."""

import json
import struct
from pathlib import Path
from typing import Any

from helpers.models import Json

NORM = "language_model.model.norm.weight"


KERNEL = "vision_tower.vision_model.embeddings.patch_embedding.weight"


def header_of(path: Path) -> tuple[Json, bytes]:
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def write_header(path: Path, header: Any, data: bytes) -> None:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + data)
