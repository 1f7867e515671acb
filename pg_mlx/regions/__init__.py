"""Boxes and masks from the text of an answer: parsing, decoding masks, drawing, and formats of other tools."""

from .parser import RegionParser, parse_regions
from .region import Malformed, Region, format_region

__all__ = ["Malformed", "Region", "RegionParser", "format_region", "parse_regions"]
