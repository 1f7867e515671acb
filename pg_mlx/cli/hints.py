"""A word to those who talk to a task model as if it were a chat model."""

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
"""The prefixes of PaliGemma's training mixtures, by their first word."""

_CHATTY = {
    *("what", "where", "who", "why", "when", "which", "how", "is", "are", "do", "does", "can", "could", "would"),
    *("please", "tell", "show", "give", "find", "list", "explain", "count", "identify", "locate", "hi", "hello"),
}


def chat_hint(prompt: str) -> str | None:
    """One line that names the prefixes PaliGemma was trained on, if the prompt looks like chat; else None.

    A fine-tuned model may well have prefixes of its own, so anything that is not plainly chat passes.
    """
    words = prompt.lower().split()
    if len(words) < 2 or prompt.split()[0] in TASKS:
        return None
    chatty = words[0].strip(",.!?'") in _CHATTY or prompt.rstrip().endswith("?") or prompt[0].isupper()
    if not chatty:
        return None
    return f"hint: PaliGemma answers to task prompts, not to chat: {' | '.join(TASKS.values())}"
