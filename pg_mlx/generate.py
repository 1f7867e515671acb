"""python -m pg_mlx.generate: the command `pg-mlx generate`. The function `pg_mlx.generate` is in generation/."""

import sys

from .cli import command

if __name__ != "__main__":  # as a module of the package it would take the place of the function
    raise ImportError("pg_mlx.generate is a function, not a module: import pg_mlx, or run python -m pg_mlx.generate")

command(["generate", *sys.argv[1:]], program="python -m pg_mlx.generate")
