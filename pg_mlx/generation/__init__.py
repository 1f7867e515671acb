"""From a model, a prompt and a picture to text."""

from .batch import batch_generate, stream_batch
from .engine import Engine
from .flow import Flow
from .grammar import RegionGrammar, grammar_for
from .pictures import FeatureCache, Picture
from .results import Generation, Stats, Step
from .rows import Allowed, Guide, Progress, Request, Row
from .sampling import SamplingOptions
from .stream import generate, stream_generate
from .warm import warm_up

__all__ = [
    "Allowed",
    "Engine",
    "FeatureCache",
    "Flow",
    "Generation",
    "Guide",
    "Picture",
    "Progress",
    "RegionGrammar",
    "Request",
    "Row",
    "SamplingOptions",
    "Stats",
    "Step",
    "batch_generate",
    "generate",
    "grammar_for",
    "stream_batch",
    "stream_generate",
    "warm_up",
]
