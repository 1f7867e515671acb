"""From a model, a prompt and a picture to text."""

from .answer import Answer
from .asked import AskedImage
from .batch import batch_generate, stream_batch
from .engine import Engine
from .features import FeatureCache, Picture
from .grammar import RegionGrammar, grammar_for
from .options import GenerateOptions
from .recovery import Recovery
from .request import Guide, Prompt, Request, make_pictures, make_prompt, make_request
from .results import Generation, Generations, Stats, Step, TokenLogprob
from .rows import Progress, Row
from .sampling import Allowed, SamplingOptions
from .scheduler import Scheduler
from .stream import generate, stream_generate
from .warm_up import warm_up

__all__ = [
    "Allowed",
    "Answer",
    "AskedImage",
    "Engine",
    "FeatureCache",
    "GenerateOptions",
    "Generation",
    "Generations",
    "Guide",
    "Picture",
    "Progress",
    "Prompt",
    "Recovery",
    "RegionGrammar",
    "Request",
    "Row",
    "SamplingOptions",
    "Scheduler",
    "Stats",
    "Step",
    "TokenLogprob",
    "batch_generate",
    "generate",
    "grammar_for",
    "make_pictures",
    "make_prompt",
    "make_request",
    "stream_batch",
    "stream_generate",
    "warm_up",
]
