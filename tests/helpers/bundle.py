"""What tests of tools/make_bundle.py are made of: a Python, packages and Mach-O files to assemble."""

from __future__ import annotations

import shutil
import struct
import sys
from importlib.metadata import distribution
from pathlib import Path

from helpers.paths import ROOT

WORKER_NEEDS = ("mlx", "mlx-cpu", "msgspec", "numpy", "pillow", "sentencepiece")
VERSION = "{}.{}".format(*sys.version_info)


def relocatable_python(folder: Path) -> Path:
    """The Python of this test as a relocatable build would have it (Linux): in its files the place where it was
    installed is another one of the same length, and the way to its library begins at the executable."""
    base = Path(sys.base_prefix)
    (folder / "bin").mkdir(parents=True)
    shutil.copy(base / "bin" / f"python{VERSION}", folder / "bin")
    extras = shutil.ignore_patterns("__pycache__", "site-packages", "test", "config-*", "idlelib", "lib2to3", "tkinter")
    shutil.copytree(base / "lib" / f"python{VERSION}", folder / "lib" / f"python{VERSION}", ignore=extras)
    for shared in (base / "lib").glob("libpython3*"):
        shutil.copy(shared, folder / "lib", follow_symlinks=False)
    prefix = bytes(base)
    last = b"/" + base.name.encode()  # stays, since linkers share the ends of strings
    other, search = b"/install".ljust(len(prefix) - len(last), b"_") + last, prefix + b"/lib\0"
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and prefix in (content := path.read_bytes()):
            content = content.replace(search, b"$ORIGIN/../lib\0".ljust(len(search), b"\0"))
            path.write_bytes(content.replace(prefix, other))
    return folder


def installed_packages(folder: Path, names: tuple[str, ...] = WORKER_NEEDS) -> Path:
    """Those of this environment, and pg_mlx of this clone, as `uv pip install --target` would lay them."""
    for name in names:
        for file in distribution(name).files or ():
            if ".." not in file.parts and "__pycache__" not in file.parts:
                target = folder / file
                target.parent.mkdir(parents=True, exist_ok=True)
                target.hardlink_to(file.locate())
    shutil.copytree(ROOT / "pg_mlx", folder / "pg_mlx", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def mach_o(
    *,
    minimum: tuple[int, int] | None = (11, 0),
    libraries: tuple[str, ...] = (),
    rpaths: tuple[str, ...] = (),
    executable: bool = False,
    cpu: int = 0x0100000C,
) -> bytes:
    """The head of a Mach-O file: header and load commands."""
    commands = [_named(0xC, name, 24) for name in libraries] + [_named(0x8000001C, name, 12) for name in rpaths]
    if minimum:
        commands.append(struct.pack("<6I", 0x32, 24, 1, minimum[0] << 16 | minimum[1] << 8, 14 << 16, 0))
    body = b"".join(commands)
    header = struct.pack("<8I", 0xFEEDFACF, cpu, 0, 2 if executable else 6, len(commands), len(body), 0, 0)
    return header + body


def fat(*parts: tuple[int, bytes]) -> bytes:
    """A file for several processors: each with what is for it."""
    table, content, at = b"", b"", 4096
    for cpu, part in parts:
        table += struct.pack(">5I", cpu, 0, at + len(content), len(part), 12)
        content += part
    return (struct.pack(">2I", 0xCAFEBABE, len(parts)) + table).ljust(at, b"\0") + content


def _named(command: int, name: str, offset: int) -> bytes:
    text = name.encode() + b"\0"
    size = (offset + len(text) + 7) // 8 * 8
    return struct.pack("<3I", command, size, offset).ljust(offset, b"\0") + text.ljust(size - offset, b"\0")
