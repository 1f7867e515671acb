"""From any checkpoint to a folder that MLX programs load: read, merge, quantize, write, compare."""

from .pipeline import convert
from .report import Report

__all__ = ["Report", "convert"]
