"""Boxes and masks out of the text: parsing, decoding masks, drawing, and files that other tools read."""

from .parser import RegionParser, parse_regions
from .region import Malformed, Region

__all__ = ["Malformed", "Region", "RegionParser", "parse_regions"]
