"""Publishing a converted folder."""

from __future__ import annotations

from pathlib import Path

from ..errors import InputError, PgMlxError


def check_login(repo: str) -> str:
    """The full name, owner/name, of a repository to upload to; the owner is the user unless it is given.

    Raises InputError for a name that cannot be, and PgMlxError without a login, or if the hub cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise InputError(f"--upload-repo {repo!r} cannot be the name of a hub repository: {error}") from None
    try:
        user = HfApi().whoami()["name"]
    except Exception as error:  # no token, a wrong one, no network: of many types, by the hub's version
        raise PgMlxError(f"uploading to {repo} needs a login: run `hf auth login` first ({error})") from error
    return repo if "/" in repo else f"{user}/{repo}"


def create(repo: str, private: bool = False) -> None:
    """Create the repository unless it is there; then it stays public or private as it is. Raises PgMlxError."""
    from huggingface_hub import HfApi

    try:
        HfApi().create_repo(repo, private=private, exist_ok=True)
    except Exception as error:  # rights, network
        raise PgMlxError(f"the hub does not let you write to {repo}: {error}") from error


def upload(folder: Path, repo: str) -> str:
    """Upload a folder to a repository that is there, and return its address. Raises PgMlxError."""
    from huggingface_hub import HfApi, constants

    try:
        HfApi().upload_folder(folder_path=folder, repo_id=repo, commit_message="Converted by pg_mlx")
    except Exception as error:  # network, rights: of many types; the folder itself is safe
        raise PgMlxError(f"{folder} is complete, but uploading it to {repo} failed: {error}") from error
    return f"{constants.ENDPOINT}/{repo}"
