"""python -m pg_mlx COMMAND ..."""

from .cli import command

if __name__ == "__main__":
    command()
