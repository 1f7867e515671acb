"""Limits that several parts of the program share. Imports nothing, so that every command can afford it."""

MAX_BATCH_SIZE = 256
"""Rows of a batch."""

MAX_PIXELS = 178_956_970
"""Pixels of one picture. Pillow's own limit: a quarter of a gigabyte as RGB words, beyond every camera."""
