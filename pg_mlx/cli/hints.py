"""A hint for prompts that are written for a chat model, which PaliGemma is not."""

from __future__ import annotations

import re
from itertools import pairwise

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


_ALL = {"the", "this", "these", "that", "all", "any", "every", "each", "everything", "me", "what", "where"}
_PICTURES = {"image", "picture", "photo", "photograph", "scene"}
_ABOUT = {("in", "the"), ("in", "this"), ("of", "the"), ("of", "this"), ("from", "the"), ("from", "this")}
_NO_LANGUAGE = {"in", "me", "my", "an", "if", "to", "of", "on", "at", "do", "be", "we", "up"}
"""Two letters that are a word here, and hardly ever meant as a language."""


def _ends_in_picture(words: list[str]) -> bool:
    return len(words) > 2 and words[-1].strip(",.!?'") in _PICTURES


def chat_hint(prompt: str) -> str | None:
    """One line that names the prompts PaliGemma was trained on, if this one looks like chat; else None.

    A fine-tuned model may have prompts of its own, so only what is plainly chat gets the hint.
    """
    words = prompt.lower().split()
    if len(words) < 2:
        return _hint() if words and TASKS.get(words[0], words[0]) != words[0] else None  # a task without what it needs
    if prompt.split()[0] in TASKS:
        chatty = _chatty_task(words)
    else:
        chatty = words[0].strip(",.!?'") in _CHATTY or prompt.rstrip().endswith("?") or prompt[0].isupper()
    if not chatty:
        return None
    return _hint()


def _hint() -> str:
    return f"hint: PaliGemma answers to task prompts, not to chat: {' | '.join(TASKS.values())}"


def _chatty_task(words: list[str]) -> bool:
    """Whether a prompt that begins with the word of a task goes on as a sentence: "describe this image"."""
    task, second = words[0], words[1].strip(",.!?'")
    about_picture = any(pair in _ABOUT for pair in pairwise(words))
    if task in ("detect", "segment"):
        return second in _ALL or about_picture or _ends_in_picture(words)
    if task == "ocr":
        return second in _ALL | _CHATTY or _ends_in_picture(words)
    language = re.fullmatch(r"[a-z]{2}(-[a-z]{2,4})?", second) and second not in _NO_LANGUAGE
    return not language and second[:1] not in ("<", "{")  # of a region


def empty_hint(empty: int, answered: int) -> str:
    """One line for answers that ended before any text."""
    which = "the answer is" if answered == 1 else f"{empty} of {answered} answers are"
    meaning = "the model had nothing to say: it found nothing, or does not know this kind of prompt"
    return f"{which} empty: {meaning} ({' | '.join(TASKS.values())})"
