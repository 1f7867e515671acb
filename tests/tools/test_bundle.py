"""tools/make_bundle.py: a helper folder runs from anywhere, and each check sees what it is there for."""

from __future__ import annotations

import os
import plistlib
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.bundle import ROOT, fat, installed_packages, mach_o, relocatable_python
from helpers.commands import assert_one_line

from tools.bundle import checks, macho, signing  # isort: skip
from tools.bundle.layout import Layout  # isort: skip
from pg_mlx.client import Client

X86 = 0x01000007
INTO_LIB = {"libraries": ("@rpath/libmlx.dylib",), "rpaths": ("@loader_path/lib",)}


def make(*arguments: str | Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "tools.make_bundle", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.skipif(sys.platform != "linux", reason="makes the helper for Linux from what runs here")
def test_a_helper_answers_from_a_place_with_a_space_after_it_was_moved(tmp_path):
    python, packages = relocatable_python(tmp_path / "python"), installed_packages(tmp_path / "packages")
    done = make(tmp_path / "out", "--python", python, "--packages", packages, "--platform", "linux")
    assert done.returncode == 0, done.stdout + done.stderr
    moved = (tmp_path / "out").rename(tmp_path / "moved here")
    before = sorted(moved.rglob("*"))
    with Client(command=(str(moved / "Helper" / "bin" / "pg-mlx"), "worker")) as client:
        found = client.generate("detect red circle", ROOT / "pg_mlx" / "demo" / "scene.png")
        running = Path(f"/proc/{client.pid}/exe").readlink()
    assert found.regions[0]["label"] == "red circle"
    assert found.regions[0]["box_normalized"] == pytest.approx([0.177, 0.070, 0.505, 0.320], abs=0.03)
    assert running.is_relative_to(moved)
    assert sorted(moved.rglob("*")) == before  # a signed folder must not be written into


@pytest.fixture
def bundle(tmp_path) -> checks.Bundle:
    """A helper for macOS of empty and made-up files, in which all is well."""
    layout = Layout(tmp_path / "Helper", "3.11")
    files = {
        layout.launcher: b"#!/bin/sh\n",
        layout.python: mach_o(executable=True, libraries=("/usr/lib/libSystem.B.dylib",)),
        layout.packages / "pg_mlx" / "__main__.py": b"",
        layout.packages / "mlx" / "core.so": mach_o(**INTO_LIB),
        layout.packages / "mlx" / "lib" / "libmlx.dylib": mach_o(minimum=(14, 0)),
        layout.packages / "mlx" / "lib" / "mlx.metallib": b"MTLB",
        layout.packages / "mlx-1.dist-info" / "WHEEL": b"Wheel-Version: 1.0\nTag: cp311-cp311-macosx_14_0_arm64\n",
    }
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    for path in (layout.launcher, layout.python):
        path.chmod(0o755)
    return checks.Bundle(layout, "macos", (14, 0), ["/building/clone"])


def failed(bundle: checks.Bundle) -> dict[str, list[str]]:
    return {check.name: check.wrong for check in checks.all_of(bundle) if check.wrong}


def test_a_sound_helper_passes_every_check(bundle):
    assert failed(bundle) == {}


def test_a_missing_launcher_or_module_is_seen(bundle):
    bundle.layout.launcher.chmod(0o644)
    (bundle.layout.packages / "pg_mlx" / "__main__.py").unlink()
    assert failed(bundle) == {"command": ["no site-packages/pg_mlx/__main__.py", "bin/pg-mlx is not executable"]}


def test_a_missing_metallib_is_seen(bundle):
    (bundle.layout.packages / "mlx" / "lib" / "mlx.metallib").unlink()
    assert failed(bundle) == {"metallib": ["no site-packages/mlx/lib/mlx.metallib"]}


@pytest.mark.parametrize(
    ("tag", "fitting"),
    [
        ("py3-none-any", True),
        ("cp311-cp311-macosx_14_0_arm64", True),
        ("cp39-abi3-macosx_11_0_arm64", True),
        ("cp311-cp311-macosx_10_13_universal2", True),
        ("cp312-abi3-macosx_11_0_arm64", False),
        ("cp312-cp312-macosx_14_0_arm64", False),
        ("cp311-cp311-macosx_14_1_arm64", False),
        ("cp311-cp311-macosx_26_0_arm64", False),
        ("cp311-cp311-macosx_14_0_x86_64", False),
        ("cp311-cp311-manylinux_2_28_x86_64", False),
    ],
)
def test_wheels_fit_the_python_and_the_oldest_macos(bundle, tag, fitting):
    (bundle.layout.packages / "mlx-1.dist-info" / "WHEEL").write_text(f"Tag: {tag}\n")
    assert failed(bundle) == ({} if fitting else {"wheels": [f"mlx-1 is for {tag}"]})


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (mach_o(minimum=(15, 2), **INTO_LIB), "needs macOS 15.2"),
        (mach_o(minimum=None, **INTO_LIB), "does not say which macOS it needs"),
        (mach_o(cpu=X86), ": it is not for arm64"),
        (fat((X86, mach_o(cpu=X86))), ": it is not for arm64"),
        (mach_o(**INTO_LIB)[:-9], ": it is cut off"),
    ],
)
def test_a_binary_for_another_machine_is_seen(bundle, content, complaint):
    (bundle.layout.packages / "mlx" / "core.so").write_bytes(content)
    (wrong,) = failed(bundle)["binaries"]
    assert wrong.startswith("site-packages/mlx/core.so") and wrong.endswith(complaint)


@pytest.mark.parametrize(
    ("libraries", "rpaths"),
    [
        (("/opt/homebrew/lib/libx.dylib",), ()),
        (("@rpath/libmlx.dylib",), ("@loader_path/elsewhere",)),
        (("@rpath/libmlx.dylib",), ()),
        (("@executable_path/../lib/libpython3.11.dylib",), ()),
    ],
)
def test_a_library_that_is_not_here_is_seen(bundle, libraries, rpaths):
    (bundle.layout.packages / "mlx" / "core.so").write_bytes(mach_o(libraries=libraries, rpaths=rpaths))
    assert failed(bundle) == {"libraries": [f"site-packages/mlx/core.so wants {libraries[0]}"]}


def test_a_path_of_the_building_machine_is_seen_even_in_bytecode(bundle):
    (bundle.layout.packages / "pg_mlx" / "x.pyc").write_bytes(b"\xa7\r\r\n/building/clone/pg_mlx/x.py\0")
    assert failed(bundle) == {"paths": ["site-packages/pg_mlx/x.pyc names /building/clone"]}


@pytest.mark.parametrize("target", ["/usr/lib/x", "../../outside", "nowhere"])
def test_a_link_that_leads_out_or_nowhere_is_seen(bundle, target, tmp_path):
    (tmp_path / "outside").touch()
    (bundle.layout.root / "bin" / "link").symlink_to(target)
    assert failed(bundle) == {"links": [f"bin/link leads to {target}"]}


def test_installers_and_tests_are_seen(bundle):
    (bundle.layout.packages / "pip").mkdir()
    assert failed(bundle) == {"leftovers": ["site-packages/pip"]}


def test_a_fat_file_is_read_where_it_is_for_arm64(tmp_path):
    path = tmp_path / "fat"
    path.write_bytes(fat((X86, mach_o(cpu=X86, minimum=(10, 9))), (macho.ARM64, mach_o(minimum=(12, 3), **INTO_LIB))))
    assert macho.read(path) == macho.MachO(False, (12, 3), **INTO_LIB)


@pytest.mark.parametrize("content", [b"", b"\x7fELF" + bytes(40), bytes.fromhex("cafebabe00000034") + bytes(40)])
def test_other_files_are_no_mach_o(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    assert macho.read(tmp_path / "file") is None


def test_signing_goes_inside_out_and_python_comes_last_with_the_entitlements(bundle, tmp_path):
    """With a codesign that writes down what it is asked."""
    out, tools = tmp_path / "to sign", tmp_path / "tools"
    out.mkdir(), tools.mkdir()
    bundle.layout.root.rename(out / "Helper")
    bundle = checks.Bundle(Layout(out / "Helper", "3.11"), "macos", (14, 0), [])
    assert signing.write(bundle, out, sandbox=True) == 3
    (tools / "codesign").write_text('#!/bin/sh\nfor a; do printf "%s|" "$a"; done >>"$LOG"; echo >>"$LOG"\n')
    (tools / "codesign").chmod(0o755)
    environment = {"PATH": f"{tools}:{os.environ['PATH']}", "LOG": str(tmp_path / "log")}
    subprocess.run(["sh", out / "sign.sh", "Me (TEAM)"], env=environment, cwd="/", check=True)
    asked = (tmp_path / "log").read_text().splitlines()
    assert [Path(line.split("|")[-2]).name for line in asked] == ["libmlx.dylib", "core.so", "python3.11"]
    assert all("|--options|runtime|--sign|Me (TEAM)|" in line for line in asked)
    assert ["--entitlements" in line for line in asked] == [False, False, True]
    assert plistlib.loads((out / "entitlements.plist").read_bytes()) == signing.SANDBOXED


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--python", "/nowhere"], "neither a folder nor a tarball"),
        (["--python", ROOT / "docs"], "has no bin/python3.X"),
        (["--python", ROOT / "docs", "--minimum-macos", "14"], "is not a version"),
        (["--python", ROOT / "docs", "--packages", ROOT, "--worker-only"], "--packages is taken as it is"),
    ],
)
def test_wrong_input_is_one_line(tmp_path, arguments, words):
    assert_one_line(make(tmp_path / "out", *arguments), 2, words)
    assert list(tmp_path.iterdir()) == []


def test_what_it_did_not_make_is_not_replaced(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").touch()
    arguments = [tmp_path / "out", "--python", ROOT / "docs"]
    assert_one_line(make(*arguments), 2, "--force replaces it")
    assert_one_line(make(*arguments, "--force"), 2, "not made by this program")
    assert (tmp_path / "out" / "precious").exists()
