"""Checks of a helper folder that do not run it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from tools.bundle import macho
from tools.bundle.layout import Layout

_SHOWN = 5
_SYSTEM = ("/usr/lib/", "/System/Library/")
_LEFTOVERS = {"pip", "setuptools", "ensurepip", "idlelib", "tkinter", "turtledemo", "test", "tests"}
_ELF = b"\x7fELF"


@dataclass(frozen=True)
class Check:
    """wrong: what breaks it, one line each. found: what was looked at, if nothing does."""

    name: str
    wrong: list[str]
    found: str

    @property
    def line(self) -> str:
        more = len(self.wrong) - _SHOWN
        shown = "; ".join([*self.wrong[:_SHOWN], *([f"and {more} more"] if more > 0 else [])])
        return f"{'FAIL' if self.wrong else 'ok':<5} {self.name:<12} {shown or self.found}"


@dataclass(frozen=True)
class Bundle:
    """A helper folder for a platform ("macos" or "linux"), with what every check asks for. minimum: macOS it must run
    on. foreign: paths of the machine that made it, which may be in none of its files."""

    layout: Layout
    platform: str
    minimum: macho.Version
    foreign: list[str]

    def binaries(self) -> Iterator[tuple[Path, macho.MachO | str]]:
        """Mach-O files, or why one cannot be used."""
        for path in self.layout.files():
            if path.is_symlink():
                continue
            try:
                found: macho.MachO | str | None = macho.read(path)
            except ValueError as error:
                found = str(error)
            if found is not None:
                yield path, found

    def name(self, path: Path) -> str:
        return path.relative_to(self.layout.root).as_posix()


def all_of(bundle: Bundle) -> list[Check]:
    """Those that concern its platform."""
    of_macos: tuple[Callable[[Bundle], Check], ...] = (metallib, binaries, libraries)
    chosen = (command, wheels, *(of_macos if bundle.platform == "macos" else (elf,)), paths, links, leftovers)
    return [check(bundle) for check in chosen]


def command(bundle: Bundle) -> Check:
    layout = bundle.layout
    parts = (layout.launcher, layout.python, layout.packages / "pg_mlx" / "__main__.py")
    wrong = [f"no {bundle.name(part)}" for part in parts if not part.is_file()]
    wrong += [f"{bundle.name(part)} is not executable" for part in parts[:2] if not os.access(part, os.X_OK)]
    return Check("command", wrong, f"{bundle.name(layout.launcher)}, Python {layout.version}")


def wheels(bundle: Bundle) -> Check:
    """Every package came from a wheel for this platform, Python, and oldest macOS."""
    wrong, count = [], 0
    for path in sorted(bundle.layout.packages.glob("*.dist-info/WHEEL")):
        count += 1
        tags = re.findall(r"^Tag: (\S+)", path.read_text(), re.MULTILINE)
        if not any(fits(tag, bundle.layout.version, bundle.platform, bundle.minimum) for tag in tags):
            wrong.append(f"{path.parent.name.removesuffix('.dist-info')} is for {', '.join(tags)}")
    return Check("wheels", wrong if count else ["no package names its wheel"], f"{count} packages")


def fits(tag: str, version: str, platform: str, minimum: macho.Version) -> bool:
    """Whether a wheel with this tag (PEP 425) runs on any such machine. minimum: the oldest macOS."""
    python, abi, where = tag.split("-")
    ours, minor = f"cp{version.replace('.', '')}", int(version.split(".")[1])
    if python.startswith("cp3"):
        if abi == "abi3":
            if int(python[3:]) > minor:
                return False
        elif python != ours:
            return False
    elif python not in ("py3", "py2.py3", f"py{ours[2:]}"):
        return False
    if where == "any":
        return True
    if platform == "linux":
        return "linux" in where
    match = re.fullmatch(r"macosx_(\d+)_(\d+)_(?:arm64|universal2)", where)
    return match is not None and (int(match[1]), int(match[2])) <= minimum


def metallib(bundle: Bundle) -> Check:
    """MLX's kernels for the GPU, which libmlx looks for beside itself."""
    beside = bundle.layout.packages / "mlx" / "lib"
    wrong = [
        f"no {bundle.name(beside / name)}" for name in ("libmlx.dylib", "mlx.metallib") if not (beside / name).is_file()
    ]
    return Check("metallib", wrong, "" if wrong else f"{(beside / 'mlx.metallib').stat().st_size / 1e6:.0f} MB")


def binaries(bundle: Bundle) -> Check:
    """Every Mach-O file is for arm64 and the oldest macOS."""
    wrong, count, newest = [], 0, (0, 0)
    for path, found in bundle.binaries():
        count += 1
        if isinstance(found, str):
            wrong.append(f"{bundle.name(path)}: {found}")
        elif found.minimum is None:
            wrong.append(f"{bundle.name(path)} does not say which macOS it needs")
        elif found.minimum > bundle.minimum:
            wrong.append(f"{bundle.name(path)} needs macOS {found.minimum[0]}.{found.minimum[1]}")
        else:
            newest = max(newest, found.minimum)
    if not isinstance(
        next((found for path, found in bundle.binaries() if path == bundle.layout.python), ""), macho.MachO
    ):
        wrong.append(f"{bundle.name(bundle.layout.python)} is not for macOS")
    return Check("binaries", wrong, f"{count} Mach-O files, for arm64 and macOS {newest[0]}.{newest[1]} or newer")


def libraries(bundle: Bundle) -> Check:
    """Every library that a Mach-O file wants is the system's or here, found from where the file lies."""
    wrong, count = [], 0
    of_python = bundle.layout.python.parent
    for path, found in bundle.binaries():
        if isinstance(found, str):
            continue  # reported by `binaries`
        for library in found.libraries:
            count += 1
            if library.startswith(_SYSTEM):
                continue
            tried = (
                [rpath + library.removeprefix("@rpath") for rpath in found.rpaths]
                if library.startswith("@rpath/")
                else [library]
            )
            if not any(_exists(name, path.parent, of_python) for name in tried):
                wrong.append(f"{bundle.name(path)} wants {library}")
    return Check("libraries", wrong, f"{count} wanted, all here or the system's")


def _exists(name: str, loader: Path, executable: Path) -> bool:
    for prefix, folder in (("@loader_path", loader), ("@executable_path", executable)):
        if name.startswith(prefix):
            return Path(f"{folder}{name.removeprefix(prefix)}").is_file()
    return False  # a path of the machine that built it


def elf(bundle: Bundle) -> Check:
    """ELF has no field for the oldest system; the wheels' tags say it (manylinux_2_28: glibc 2.28)."""
    count = sum(_begins(path, _ELF) for path in bundle.layout.files() if not path.is_symlink())
    python = _begins(bundle.layout.python, _ELF)
    return Check(
        "binaries", [] if python else [f"{bundle.name(bundle.layout.python)} is not for Linux"], f"{count} ELF files"
    )


def _begins(path: Path, magic: bytes) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(magic)) == magic
    except FileNotFoundError:
        return False


def paths(bundle: Bundle) -> Check:
    """No file names a path of the machine that made it, as scripts and bytecode often do."""
    needles = [(place, os.fsencode(place)) for place in bundle.foreign]
    wrong, count = [], 0
    for path in bundle.layout.files():
        if path.is_symlink():
            continue
        count += 1
        content = path.read_bytes()
        wrong += [f"{bundle.name(path)} names {place}" for place, needle in needles if needle in content]
    return Check("paths", wrong, f"{count} files name nothing of this machine")


def links(bundle: Bundle) -> Check:
    """Links lead to files here, by relative paths."""
    wrong, count, root = [], 0, bundle.layout.root.resolve()
    for path in bundle.layout.files():
        if not path.is_symlink():
            continue
        count += 1
        target = path.readlink()
        if target.is_absolute() or not path.exists() or not path.resolve().is_relative_to(root):
            wrong.append(f"{bundle.name(path)} leads to {target}")
    return Check("links", wrong, f"{count} links")


def leftovers(bundle: Bundle) -> Check:
    """No files that are only for building or testing."""
    folders = (path for path in bundle.layout.root.rglob("*") if path.is_dir() and path.name in _LEFTOVERS)
    return Check("leftovers", [bundle.name(path) for path in islice(folders, 100)], "none")
