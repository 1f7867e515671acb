"""Ask PaliGemma about a picture: python generate.py --model FOLDER --image photo.jpg --prompt "caption en"."""

import sys

from pg_mlx.cli import command

if __name__ == "__main__":
    command(["generate", *sys.argv[1:]], program="generate.py")
