"""Convert and quantize a PaliGemma: python convert.py --hf-path REPO|FOLDER|FILE.npz --mlx-path DST -q."""

import sys

from pg_mlx.cli import command

if __name__ == "__main__":
    command(["convert", *sys.argv[1:]], program="convert.py")
