"""The events of an answer as messages of the protocol (WorkerText, WorkerRegion and WorkerDone of schemas.py)."""

from __future__ import annotations

from dataclasses import asdict

from ...regions.export import malformed_to_json, to_json
from ..service.requests import Answered, RegionFound, Text
from .framing import Message

Id = str | int


def partial_message(request_id: Id, event: Text | RegionFound) -> Message:
    """WorkerText or WorkerRegion."""
    if isinstance(event, Text):
        return {"type": "text", "id": request_id, "text": event.text}
    return {"type": "region", "id": request_id, "region": to_json(event.region)}


def done_message(request_id: Id, event: Answered) -> Message:
    """WorkerDone."""
    generation = event.generation
    width, height = event.image_size
    return {
        "type": "done",
        "id": request_id,
        "text": generation.text,
        "token_ids": generation.token_ids,
        "finish_reason": generation.finish_reason,
        "regions": [to_json(region) for region in generation.regions],
        "malformed": [malformed_to_json(malformed) for malformed in generation.malformed],
        "width": width,
        "height": height,
        "stats": {**asdict(generation.stats), "queue_s": event.queue_s},
    }
