"""A hint for prompts that are written for a chat model, which PaliGemma is not."""

from __future__ import annotations

TASKS = {
    "cap": "cap en",
    "caption": "caption en",
    "describe": "describe en",
    "ocr": "ocr",
    "answer": "answer en QUESTION",
    "question": "question en ANSWER",
    "detect": "detect THING ; THING",
    "segment": "segment THING ; THING",
}
"""The prompts that PaliGemma was trained on, by their first word."""

_CHATTY = {
    *("what", "where", "who", "why", "when", "which", "how", "is", "are", "do", "does", "can", "could", "would"),
    *("please", "tell", "show", "give", "find", "list", "explain", "count", "identify", "locate", "hi", "hello"),
}


def chat_hint(prompt: str) -> str | None:
    """One line that names the prompts PaliGemma was trained on, if this one looks like chat; else None.

    A fine-tuned model may have prompts of its own, so only what is plainly chat gets the hint.
    """
    words = prompt.lower().split()
    if len(words) < 2 or prompt.split()[0] in TASKS:
        return None
    chatty = words[0].strip(",.!?'") in _CHATTY or prompt.rstrip().endswith("?") or prompt[0].isupper()
    if not chatty:
        return None
    return f"hint: PaliGemma answers to task prompts, not to chat: {' | '.join(TASKS.values())}"


def empty_hint(empty: int, answered: int) -> str:
    """One line for answers that ended before any text."""
    which = "the answer is" if answered == 1 else f"{empty} of {answered} answers are"
    meaning = "the model had nothing to say: it found nothing, or does not know this kind of prompt"
    return f"{which} empty: {meaning} ({' | '.join(TASKS.values())})"
