"""What macOS says when it ends the work of a GPU, and what helps then."""

from __future__ import annotations

_HELPS = "--layers-at-once 1 (layers_at_once=1 in Python) or AGX_RELAX_CDM_CTXSTORE_TIMEOUT=1 in the environment"
_ADVICE = {
    "Impacting Interactivity": f"macOS ended the GPU's work because it held up the screen; what helps is {_HELPS}",
    "SubmissionsIgnored": f"macOS takes no more GPU work of this process; start it again, with {_HELPS}",
}
"""By words of MLX's message, which quotes Metal's."""


def advice(error: BaseException) -> str | None:
    """One line for an error of MLX that says that macOS has ended the GPU's work; None for another error."""
    message = str(error)
    return next((helps for words, helps in _ADVICE.items() if words in message), None)


def is_final(error: BaseException) -> bool:
    """Whether this process gets no more work done on the GPU."""
    return "SubmissionsIgnored" in str(error)


def explained(error: BaseException) -> str:
    """An error in one line: its kind, its message and, if macOS has ended the GPU's work, what helps."""
    helps = advice(error)
    line = " ".join(f"{type(error).__name__}: {error}".split())
    return f"{line} ({helps})" if helps else line
