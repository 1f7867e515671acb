"""From a model, a prompt and a picture to text."""

from .results import Generation, Stats, Step
from .sampling import SamplingOptions
from .stream import generate, stream_generate

__all__ = ["Generation", "SamplingOptions", "Stats", "Step", "generate", "stream_generate"]
