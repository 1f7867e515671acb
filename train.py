"""Fine-tune PaliGemma on your pictures: python train.py --model FOLDER --data FOLDER --adapter-path OUT."""

import sys

from pg_mlx.cli import command

if __name__ == "__main__":
    command(["train", *sys.argv[1:]], program="train.py")
