"""Conversions without a comparison."""

from __future__ import annotations

from functools import partial

import pg_mlx

FOLDERS = ["pg1_classic", "pg1_new", "pg2_classic", "pg2_new"]


EMBEDDING = "language_model.model.embed_tokens.weight"


convert = partial(pg_mlx.convert, check=False)


weights_only = partial(convert, need_tokenizer=False)
