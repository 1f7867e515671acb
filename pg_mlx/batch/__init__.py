"""Very many pictures: answers as rows, for data engines (Predictor) and in files (the command `batch`).

Nothing here imports MLX before a model is loaded.
"""

from .predictor import Predictor

__all__ = ["Predictor"]
