"""How a helper folder for macOS is signed. docs/embedding.md explains why there are so few entitlements."""

from __future__ import annotations

import plistlib
from pathlib import Path

from tools.bundle.checks import Bundle

SANDBOXED = {"com.apple.security.app-sandbox": True, "com.apple.security.inherit": True}
"""A child of a sandboxed app has these and no other of the sandbox's, or the system ends it."""

_SCRIPT = """\
#!/bin/sh
# Signs what lies beside this file, inside out: each library before what loads it, Python last, then the app around it.
#
#     sh sign.sh IDENTITY [HELPER [APP [APP_ENTITLEMENTS]]]
#
# IDENTITY: as `security find-identity -v -p codesigning` lists it. HELPER: as App.app/Contents/Resources/Helper
# (default: the one beside this file). APP: signed and verified afterwards; in Xcode leave it to Xcode.
set -eu
here=$(cd -- "$(dirname -- "$0")" && pwd -P)
identity=$1
helper=${{2:-$here/{helper}}}
app=${{3:-}}

sign() {{
    codesign --force --timestamp --options runtime --sign "$identity" "$@" </dev/null
}}

while IFS= read -r file; do
    sign "$helper/$file"
done <<'INSIDE_OUT'
{inner}
INSIDE_OUT
sign --entitlements "$here/entitlements.plist" "$helper/{python}"

if [ -n "$app" ]; then
    if [ -n "${{4:-}}" ]; then sign --entitlements "$4" "$app"; else sign "$app"; fi
    codesign --verify --deep --strict --verbose=2 "$app"
fi
"""


def order(bundle: Bundle) -> list[Path]:
    """Every Mach-O file: the deepest first, and programs after libraries."""
    found = [(path, binary) for path, binary in bundle.binaries() if not isinstance(binary, str)]
    found.sort(key=lambda one: (one[1].executable, -len(one[0].parts), one[0]))
    return [path for path, _ in found]


def write(bundle: Bundle, folder: Path, *, sandbox: bool) -> int:
    """entitlements.plist and sign.sh. Returns how many files there are to sign."""
    (folder / "entitlements.plist").write_bytes(plistlib.dumps(SANDBOXED if sandbox else {}))
    files = [bundle.name(path) for path in order(bundle)]
    python = bundle.name(bundle.layout.python)
    inner = "\n".join(name for name in files if name != python)
    script = folder / "sign.sh"
    script.write_text(_SCRIPT.format(helper=bundle.layout.root.name, inner=inner, python=python))
    script.chmod(0o755)
    return len(files)
