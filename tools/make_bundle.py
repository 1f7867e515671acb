"""Make the folder that a macOS app ships to run `pg-mlx worker`: docs/embedding.md.

python -m tools.make_bundle OUT --python cpython-3.11-aarch64-apple-darwin-install_only_stripped.tar.gz
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import tempfile
from pathlib import Path

CLONE = Path(__file__).resolve().parent.parent

from tools.bundle import checks, sizes, signing  # noqa: E402, I001
from tools.bundle.layout import Layout, compile_all, put_packages, put_python  # noqa: E402
from tools.bundle.packages import PLATFORMS, WORKER_LEAVES_OUT, install  # noqa: E402
from pg_mlx.cli.options import Parser  # noqa: E402
from pg_mlx.errors import InputError, PgMlxError  # noqa: E402

DESCRIPTION = "Make OUT/Helper, a folder with Python, MLX and pg_mlx that runs from any place, and check it."

EPILOG = """\
For macOS OUT also gets entitlements.plist and sign.sh, which is run on a Mac; nothing is signed here.
The checks look at files and run nothing. exit code: 0, 1 if a check fails, 2 for a wrong input.
"""


def parser() -> argparse.ArgumentParser:
    p = Parser("make_bundle.py", DESCRIPTION, EPILOG)
    p.add_argument("out", type=Path, metavar="OUT", help="folder to make")
    p.add_argument(
        "--python", type=Path, required=True, help="relocatable Python: a folder with bin and lib, or a tarball"
    )
    p.add_argument("--platform", choices=list(PLATFORMS), default="macos", help="default: macos (Apple silicon)")
    p.add_argument(
        "--minimum-macos", default="14.0", metavar="X.Y", help="oldest macOS that it must run on (default: 14.0)"
    )
    p.add_argument(
        "--packages", type=Path, metavar="DIR", help="installed set to take, as pip and uv fill with --target"
    )
    p.add_argument(
        "--without",
        action="append",
        default=[],
        metavar="NAME",
        help="package to leave out, with what only it needs (repeatable)",
    )
    p.add_argument(
        "--worker-only",
        action="store_true",
        help=f"leave out what a worker does not need for models in folders: {', '.join(WORKER_LEAVES_OUT)}",
    )
    p.add_argument("--without-demo", action="store_true", help="leave the demo checkpoint out")
    p.add_argument("--sandbox", action="store_true", help="entitlements for the helper of a sandboxed app")
    p.add_argument("--force", action="store_true", help="replace OUT")
    return p


def main(argv: list[str]) -> int:
    try:
        return run(parser().parse_args(argv))
    except PgMlxError as error:
        print(f"make_bundle.py: error: {error}", file=sys.stderr)
        return error.exit_code


def run(args: argparse.Namespace) -> int:
    minimum = re.fullmatch(r"(\d{1,3})\.(\d{1,3})", args.minimum_macos, re.ASCII)
    if not minimum:
        raise InputError(f"--minimum-macos {args.minimum_macos} is not a version such as 14.0")
    if args.packages and (args.without or args.worker_only):
        raise InputError("--packages is taken as it is: leave packages out when you install them")
    out = args.out.absolute()
    if out.exists() and not args.force:
        raise InputError(f"{out} exists; --force replaces it")
    if out.exists() and not (out / "Helper" / "bin" / "pg-mlx").is_file():
        raise InputError(f"{out} was not made by this program, so --force does not replace it")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as temporary:
        made = Path(temporary, "made")  # a temporary directory is closed to others
        made.mkdir()
        layout = assemble(args, made)
        places = [CLONE, made, out, args.python.absolute(), *([args.packages.absolute()] if args.packages else [])]
        bundle = checks.Bundle(
            layout, args.platform, (int(minimum[1]), int(minimum[2])), sorted({*map(str, places), *_home()})
        )
        results = checks.all_of(bundle)
        print("\n".join(check.line for check in results))
        print("\n".join(["", *(f"{name:<32} {size / 1e6:8.1f} MB" for name, size in sizes.table(layout))]))
        if args.platform == "macos":
            count = signing.write(bundle, made, sandbox=args.sandbox)
            print(f"\nto sign, in the order of sign.sh: {count} files")
        if out.exists():
            out.rename(Path(temporary, "before"))
        made.rename(out)
    return 1 if any(check.wrong for check in results) else 0


def assemble(args: argparse.Namespace, folder: Path) -> Layout:
    """The helper in folder/Helper."""
    layout = put_python(args.python, folder / "Helper")
    packages = args.packages
    if packages is None:
        packages = folder / "packages"
        install(
            CLONE,
            packages,
            platform=args.platform,
            python=layout.version,
            minimum=args.minimum_macos,
            without=[*args.without, *(WORKER_LEAVES_OUT if args.worker_only else ())],
        )
    put_packages(packages, layout)
    shutil.rmtree(folder / "packages", ignore_errors=True)
    if args.without_demo:
        shutil.rmtree(layout.packages / "pg_mlx" / "demo" / "checkpoint", ignore_errors=True)
    compile_all(layout)
    return layout


def _home() -> set[str]:
    """Root's does not count: wheels are built by root in containers, and name what was there."""
    home = str(Path.home())
    return set() if home in ("/", "/root") else {home}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
