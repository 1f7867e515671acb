"""Publishing a converted folder."""

from __future__ import annotations

from pathlib import Path

from ..errors import PgMlxError


def upload(folder: Path, repo: str) -> str:
    """Create the repository if need be, upload the folder, return its address. Raises PgMlxError."""
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        address = api.create_repo(repo, exist_ok=True)
        api.upload_folder(folder_path=folder, repo_id=repo, commit_message="Converted by pg_mlx")
    except Exception as error:  # network, rights, names: of many types; the folder itself is safe
        raise PgMlxError(f"{folder} is complete, but uploading it to {repo} failed: {error}") from error
    return str(address)
