"""How the model is computed, on a GPU and on the CPU backend. Nothing is imported here: blas.py runs before MLX."""
