"""From any checkpoint to a folder that MLX programs load: read, merge, quantize, write, compare."""

from .one_call import convert
from .report import Report

__all__ = ["Report", "convert"]
