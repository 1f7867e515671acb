"""Packing float matrices into few bits: arrays in, arrays out. It knows no model and no files."""

from .affine import pack_fitted
from .modes import Quantization
from .packed import Packed
from .padding import pad_columns, pad_rows, padded_size
from .recipes import METHODS, RECIPES, Recipe, uniform

__all__ = [
    "METHODS",
    "RECIPES",
    "Packed",
    "Quantization",
    "Recipe",
    "pack_fitted",
    "pad_columns",
    "pad_rows",
    "padded_size",
    "uniform",
]
