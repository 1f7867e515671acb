"""Packing float matrices into few bits: arrays in, arrays out. It knows no model and no files."""

from .modes import Quantization
from .packed import Packed
from .padding import pad_columns, pad_rows, padded_size
from .recipes import RECIPES, Recipe, uniform

__all__ = ["RECIPES", "Packed", "Quantization", "Recipe", "pad_columns", "pad_rows", "padded_size", "uniform"]
