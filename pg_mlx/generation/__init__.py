"""From a model, a prompt and a picture to text."""

from .batch import batch_generate, stream_batch
from .engine import Engine
from .features import FeatureCache, Picture
from .grammar import RegionGrammar, grammar_for
from .request import Guide, Request
from .results import Generation, Stats, Step
from .rows import Progress, Row
from .sampling import Allowed, SamplingOptions
from .scheduler import Flow
from .stream import generate, stream_generate
from .warm_up import warm_up

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
