"""Which token may attend to which.

PaliGemma is a prefix language model: image and prompt see each other in both directions, and the answer sees
them and its own earlier tokens. For 2 prefix tokens (p) and 2 suffix tokens (s), a token on the left may
attend to a token at the top where a 1 stands:

          p p s s
        p 1 1 0 0
        p 1 1 0 0
        s 1 1 1 0
        s 1 1 1 1
"""

from __future__ import annotations

import mlx.core as mx


def prefix_lm_mask(length: int, prefix_lengths: mx.array, lengths: mx.array, window: int | None = None) -> mx.array:
    """The mask of a batch of right-padded rows of T = `length` slots: bool [B, 1, T, T].

    prefix_lengths and lengths are int32 [B]: how many slots of a row are prefix (image and prompt), and how
    many are in use in all. With `window`, a suffix token sees only the last `window` tokens, itself included, while
    the prefix still sees all of itself. This is how transformers runs Gemma 2's sliding layers. The original code has
    no window.
    """
    slots = mx.arange(length)
    query, key = slots[:, None], slots[None, :]
    prefix, used = prefix_lengths[:, None, None], lengths[:, None, None]
    allowed = key <= query
    if window is not None:
        allowed = allowed & (key > query - window)
    allowed = allowed | ((query < prefix) & (key < prefix))
    return (allowed & (key < used))[:, None]
