"""What a failed request to the Hugging Face hub means, in one line."""

from __future__ import annotations

import errno

from ..errors import InputError, PgMlxError


def explain(error: Exception, repo: str, revision: str | None) -> PgMlxError | None:
    """The error to raise for a failed download, or None if the hub gave no answer."""
    from huggingface_hub import constants, errors

    chain = chain_of(error)
    full = [e for e in chain if getattr(e, "errno", None) == errno.ENOSPC or "No space left on device" in str(e)]
    if full:
        return PgMlxError(f"the disk is full: no room for {repo} in {constants.HF_HUB_CACHE}")
    if isinstance(error, OSError) and error.filename is not None:  # a local file; network errors name none
        return PgMlxError(f"could not store {repo}: {one_line(error.strerror)}: {one_line(error.filename)}")
    if isinstance(error, errors.HFValidationError):
        return InputError(f"no such folder, and not a possible name of a hub repository: {repo}")

    # A refusal may come wrapped in "not in the cache", which before version 1 is an HTTP error without a response.
    answers = (e for e in chain if isinstance(e, errors.HfHubHTTPError))
    answer = next((e for e in answers if e.response is not None), None)
    if answer is None:
        return None
    status = answer.response.status_code
    page = f"{constants.ENDPOINT}/{repo}"
    if isinstance(answer, errors.RevisionNotFoundError):
        return InputError(f"the hub repository {repo} has no revision {one_line(revision or 'main')}")
    if isinstance(answer, errors.DisabledRepoError):
        return InputError(f"the hub has disabled the repository {repo}: see {page}")
    if isinstance(answer, errors.EntryNotFoundError):
        return InputError(f"the hub repository {repo} has no config.json, or not every file that its index names")
    # Also 403 without a reason: a token that may not read gated repositories gets that.
    if isinstance(answer, errors.GatedRepoError) or status == 403:
        return InputError(
            f"access to {repo} is restricted: accept its licence at {page}, then run `hf auth login`"
            " with a token that may read it"
        )
    if status == 401 and answer.response.headers.get("X-Error-Message", "").startswith("Invalid credentials"):
        return InputError(f"the hub does not accept the token it was given for {repo}: run `hf auth login` again")
    # Without a token the hub answers 401 for what is private and for what does not exist.
    if isinstance(answer, errors.RepositoryNotFoundError) or status == 401:
        return InputError(
            f"no folder {repo} here, and on the hub no such repository, or it is private"
            " (if it is yours, run `hf auth login`)"
        )
    return PgMlxError(f"could not download {repo}: {constants.ENDPOINT} answered HTTP {status}; try again later")


def unreachable(error: Exception, repo: str) -> PgMlxError:
    """The error to raise if neither the hub nor the cache has the repository."""
    return PgMlxError(
        f"no folder {repo} here, and the hub could not be reached ({reason(error)}); the cache does not hold all of it"
    )


def reason(error: Exception) -> str:
    """Why the hub gave no answer, on one line."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    cause = chain_of(error)[-1]
    return f"{type(cause).__name__}: {one_line(cause)}"


def chain_of(error: BaseException) -> list[BaseException]:
    """An exception and, one after the other, what caused it."""
    chain = [error]
    while (cause := chain[-1].__cause__) is not None and cause not in chain:
        chain.append(cause)
    return chain


def one_line(text: object) -> str:
    """A name or another library's message on one line, at most 300 characters of it."""
    line = " ".join(str(text).split())
    return line if len(line) <= 300 else line[:300] + "..."
