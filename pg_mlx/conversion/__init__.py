"""From any checkpoint to a folder that MLX programs load: read, merge, quantize, write, compare."""

from .pipeline import Report, convert

__all__ = ["Report", "convert"]
