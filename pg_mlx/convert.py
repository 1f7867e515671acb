"""python -m pg_mlx.convert: the command `pg-mlx convert`. The function `pg_mlx.convert` is in conversion/."""

import sys

from .cli import command

if __name__ != "__main__":  # as a module of the package it would take the place of the function
    raise ImportError("pg_mlx.convert is a function, not a module: import pg_mlx, or run python -m pg_mlx.convert")

command(["convert", *sys.argv[1:]], program="python -m pg_mlx.convert")
