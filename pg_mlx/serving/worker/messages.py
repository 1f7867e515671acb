"""The events of an answer as messages of the protocol (WorkerText, WorkerRegion and WorkerDone of schemas.py)."""

from __future__ import annotations

from ...regions.export import to_json
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
    answer = event.generation.to_json()
    answer["stats"]["queue_s"] = event.queue_s
    return {"type": "done", "id": request_id, **answer}
