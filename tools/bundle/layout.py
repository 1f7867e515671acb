"""What a helper folder holds, and where.

Helper/bin/pg-mlx       starts the command from wherever the folder lies
Helper/python/          a Python that finds its library from its own place
Helper/site-packages/   the packages, unpacked
"""

from __future__ import annotations

import compileall
import py_compile
import shutil
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

from pg_mlx.errors import InputError

_LIBRARY_EXTRAS = (
    "site-packages", "config-*", "distutils", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "test", "tkinter",
    "turtle.py", "turtledemo", "venv", "*/test", "*/tests", "lib-dynload/_test*", "lib-dynload/*_test*",
    "lib-dynload/xx*", "lib-dynload/_tkinter*",
)  # fmt: skip
"""Left out of the standard library: installers, documentation, tests and graphical windows. A worker needs none."""

_PACKAGE_EXTRAS = (
    "bin", "**/tests", "**/include", "**/cmake", "**/*.pyi", "**/*.pxd", "*.dist-info/direct_url.json",
    "*.dist-info/uv_*.json",
)  # fmt: skip
"""Left out of packages: files for building and testing, and notes on where they were installed from."""

_CACHED = shutil.ignore_patterns("__pycache__")
"""Bytecode of where the files come from, which names paths there."""

_LAUNCHER = """\
#!/bin/sh
# -I: neither the user's environment nor packages change what runs. -B: nothing is written into the (signed) folder.
helper=$(dirname -- "$(dirname -- "$(readlink -f -- "$0")")")
exec "$helper/python/bin/{python}" -I -B -m pg_mlx "$@"
"""


@dataclass(frozen=True)
class Layout:
    """root: of the helper folder. version: of its Python, as 3.11."""

    root: Path
    version: str

    @property
    def python(self) -> Path:
        return self.root / "python" / "bin" / f"python{self.version}"

    @property
    def packages(self) -> Path:
        return self.root / "site-packages"

    @property
    def launcher(self) -> Path:
        return self.root / "bin" / "pg-mlx"

    def files(self) -> list[Path]:
        """All but folders, sorted; links too."""
        return sorted(path for path in self.root.rglob("*") if path.is_symlink() or not path.is_dir())


def put_python(source: Path, root: Path) -> Layout:
    """Copy a Python, without the parts that a worker does not need.

    source: a folder with bin and lib, or the tarball of one, as python-build-standalone's install_only ones. Raises
    InputError.
    """
    target = root / "python"
    if source.is_dir():
        _copy_python(source, target)
    else:
        unpacked = root / "unpacked"
        try:
            with tarfile.open(source) as tarball:
                tarball.extractall(unpacked, filter="data")
        except (OSError, tarfile.TarError) as error:
            raise InputError(f"--python {source} is neither a folder nor a tarball: {error}") from None
        _copy_python(next(unpacked.glob("**/bin"), unpacked / "bin").parent, target)
        shutil.rmtree(unpacked)
    library = next((target / "lib").glob("python3.*"))
    layout = Layout(root, library.name.removeprefix("python"))
    # a path in a .pth file is relative to the folder that the file lies in
    (library / "site-packages").mkdir()
    (library / "site-packages" / "helper.pth").write_text("../../../../site-packages\n")
    layout.launcher.parent.mkdir()
    layout.launcher.write_text(_LAUNCHER.format(python=layout.python.name))
    layout.launcher.chmod(0o755)
    return layout


def _copy_python(source: Path, target: Path) -> None:
    libraries = [path for path in (source / "lib").glob("python3.*") if (path / "os.py").is_file()]
    executable = source / "bin" / libraries[0].name if libraries else None
    if executable is None or not executable.is_file():
        raise InputError(f"--python {source} has no bin/python3.X with its lib/python3.X")
    library = target / "lib" / libraries[0].name
    (target / "bin").mkdir(parents=True)
    shutil.copy2(executable, target / "bin")  # the file that a link leads to
    extras = {path for pattern in _LIBRARY_EXTRAS for path in libraries[0].glob(pattern)}
    shutil.copytree(
        libraries[0],
        library,
        symlinks=True,
        ignore=lambda folder, names: {n for n in names if Path(folder, n) in extras} | _CACHED(folder, names),
    )
    if b"libpython3" in executable.read_bytes():  # else it is linked into the executable
        for shared in (source / "lib").glob("libpython3.*"):
            shutil.copy2(shared, target / "lib", follow_symlinks=False)


def put_packages(source: Path, layout: Layout) -> None:
    """Copy installed packages, without the parts that a worker does not need. source: a folder from `--target` of pip
    or uv."""
    shutil.copytree(source, layout.packages, symlinks=True, ignore=_CACHED)
    for pattern in _PACKAGE_EXTRAS:
        for path in list(layout.packages.glob(pattern)):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def compile_all(layout: Layout) -> None:
    """Bytecode, so that a start does not compile: nobody may write it later. It names files relative to the folder, and
    is valid whatever their dates become."""
    if layout.version != (mine := "{}.{}".format(*sys.version_info)):
        raise InputError(f"bytecode for Python {layout.version} is made by Python {layout.version}, and this is {mine}")
    compileall.compile_dir(
        layout.root,
        maxlevels=99,
        quiet=2,
        stripdir=str(layout.root),
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )
