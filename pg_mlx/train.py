"""python -m pg_mlx.train: the command `pg-mlx train`."""

import sys

from .cli import command

if __name__ == "__main__":
    command(["train", *sys.argv[1:]], program="python -m pg_mlx.train")
