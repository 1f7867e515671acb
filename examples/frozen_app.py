"""An app without a window, made to be frozen: `frozen_app PROMPT PICTURE...` prints an answer for each picture.

    python -m pip install ".[apps]" && pyinstaller examples/frozen_app.py
    dist/frozen_app/frozen_app "detect red circle" pg_mlx/demo/scene.png

The folder dist/frozen_app needs no Python on the machine where it runs.
"""

import sys

from pg_mlx.client import Client, serve_if_worker

serve_if_worker()  # first of all: the app starts itself again as its worker, and that process must stay in here


def main() -> None:
    prompt, pictures = sys.argv[1], sys.argv[2:]
    with Client() as client:  # the bundled demo; give the folder of a checkpoint here
        for picture in pictures:
            print(client.generate(prompt, picture).text, flush=True)


if __name__ == "__main__":
    main()
