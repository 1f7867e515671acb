"""Apple's intermediate representation to plain LLVM: one address space, no metadata, bodies for `air.*` functions.

It is done in LLVM's text form. What the metadata says of a kernel's arguments is kept in `Argument`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from . import intrinsics
from .intrinsics import Unsupported

Constant = bool | int | float


@dataclass(frozen=True)
class Argument:
    """An argument of a kernel: a buffer by its index, or where a thread is (kind "thread_position_in_grid" ...).

    optional: whether it exists for some function constants only. Compilers may read such a buffer early all the same.
    """

    kind: str
    index: int
    name: str
    type: str
    optional: bool = False


@dataclass(frozen=True)
class Module:
    """A kernel in plain LLVM. shared: its variables of threadgroup memory, by their names in `text`."""

    name: str
    text: str
    arguments: tuple[Argument, ...]
    shared: tuple[str, ...]


def translate(name: str, raw: str, constants: Mapping[int, Constant]) -> Module:
    """raw: the text of a kernel's module. constants: its function constants by index; those that are missing are 0.
    Raises Unsupported."""
    arguments = _arguments(name, raw)
    text = _without_metadata(_with_constants(raw, constants))
    shared = tuple(re.findall(r"^(@\S+) = internal (?:unnamed_addr )?addrspace\(3\) global", text, re.M))
    for number, variable in enumerate(shared):
        pattern = rf"^{re.escape(variable)} = internal (?:unnamed_addr )?addrspace\(3\) global (.*?) \w+, align"
        text = re.sub(pattern, rf"@pg_shared_{number} = global \1 zeroinitializer, align", text, flags=re.M)
        text = re.sub(rf"{re.escape(variable)}(?![\w.$])", f"@pg_shared_{number}", text)
    text = _one_address_space(text)
    return Module(name, _with_bodies(text), arguments, tuple(f"pg_shared_{i}" for i in range(len(shared))))


def split_types(text: str) -> list[str]:
    """The parts of a list with commas, as in an argument list; brackets hold together."""
    parts, depth, start = [], 0, 0
    for at, letter in enumerate(text):
        depth += (letter in "([{<") - (letter in ")]}>")
        if letter == "," and depth == 0:
            parts.append(text[start:at].strip())
            start = at + 1
    last = text[start:].strip()
    return [*parts, last] if last else parts


def leading_type(text: str) -> str:
    """The type that a text begins with."""
    depth = 0
    for at, letter in enumerate(text):
        depth += (letter in "([{<") - (letter in ")]}>")
        if depth == 0 and letter in " ,":
            return text[:at]
    return text


def signature(text: str, name: str) -> re.Match[str]:
    """The line that begins the kernel's definition; group "arguments" is what its brackets hold."""
    match = re.search(rf"^define [^@\n]*@{re.escape(name)}\((?P<arguments>.*)\)[^)\n]*\{{$", text, re.M)
    if match is None:
        raise Unsupported(f"{name} has no definition")
    return match


def _arguments(name: str, raw: str) -> tuple[Argument, ...]:
    nodes = dict(re.findall(r"^!(\d+) = (?:distinct )?(!\{.*\})$", raw, re.M))
    kernels = re.findall(r"^!air\.kernel = !\{!(\d+)\}", raw, re.M)
    if len(kernels) != 1:
        raise Unsupported(f"{name}: {len(kernels)} kernels in one module")
    listed = re.findall(r"!(\d+)", nodes[re.findall(r"!(\d+)", nodes[kernels[0]])[1]])
    types = [re.match(r"<[^>]*>|\w+", part) for part in split_types(signature(raw, name)["arguments"])]
    return tuple(_argument(nodes[n], t[0] if t else "") for n, t in zip(listed, types, strict=True))


def _argument(node: str, type_: str) -> Argument:
    name = re.search(r'"air\.arg_name", !"([^"]*)"', node)
    kinds = re.findall(r'!"air\.(buffer|thread\w*|quadgroups?_\w+|simdgroups?_\w+|dispatch\w*|grid\w*)"', node)
    if not kinds:
        raise Unsupported(f"the argument {node}")
    location = re.search(r'"air\.location_index", i32 (\d+)', node)
    optional = '"air.function_constant"' in node
    return Argument(kinds[0], int(location[1]) if location else -1, name[1] if name else "", type_, optional)


def _with_constants(text: str, constants: Mapping[int, Constant]) -> str:
    pattern = r"^(@\S+\.MTL_FC_INIT_(\d+)_\w+\"?) = internal .*?constant (i8|i16|i32|i64|float) undef.*?(, align \d+)$"

    def value(match: re.Match[str]) -> str:
        given = constants.get(int(match[2]), 0)
        return (
            f"{match[1]} = internal constant {match[3]} {float(given) if match[3] == 'float' else int(given)}{match[4]}"
        )

    return re.sub(pattern, value, text, flags=re.M)


def _without_metadata(text: str) -> str:
    """Also without what lets LLVM conclude something from the absence of faults: `inbounds`, `dereferenceable` ..."""
    text = re.sub(r"^(target |!|attributes |@llvm\.compiler\.used|@llvm\.used).*\n", "", text, flags=re.M)
    text = re.sub(r"(, ![\w.]+ !\d+)+$", "", text, flags=re.M)
    text = re.sub(r"( #\d+)+(?=$| \{$| section)", "", text, flags=re.M)
    text = re.sub(r',? section "[^"]*"', "", text)
    text = re.sub(r' "air[-\w]*"(?:="[^"]*")?', "", text)
    text = re.sub(
        r" (externally_initialized|local_unnamed_addr|noundef|nonnull|noalias|nocapture|weak_odr)\b", "", text
    )
    text = re.sub(r" (dereferenceable(_or_null)?|captures)\([^)]*\)", "", text)
    text = re.sub(r" (readonly|writeonly|readnone|immarg|returned)\b", "", text)
    return re.sub(r"(?<=getelementptr)( inbounds| nuw| nusw)+", "", text)


def _one_address_space(text: str) -> str:
    text = re.sub(r" addrspace\(\d+\)", "", text)
    text = re.sub(r"addrspacecast \(ptr (@[\w.$\"]+) to ptr\)", r"\1", text)
    text = re.sub(r"= addrspacecast (.*) to ptr", r"= bitcast \1 to ptr", text)
    return re.sub(r"(@llvm\.[\w.]+)", lambda match: re.sub(r"\.p\d\b", ".p0", match[1]), text)


def _with_bodies(text: str) -> str:
    """Declarations of `air.*` become definitions; each `llvm.*` is declared once, also those that bodies call."""
    lines = text.splitlines()
    declared = sorted({line for line in lines if line.startswith("declare ")})
    bodies = [intrinsics.definition(line) for line in declared if "@air." in line]
    kept = {line.split("@")[1].split("(")[0]: line for line in declared if "@air." not in line}
    for line in "\n".join(bodies).splitlines():
        call = re.search(r"call (<[^>]+>|\w+) @(llvm\.[\w.]+)\((.*)\)", line)
        if call:
            types = ", ".join(re.findall(r"(<[^>]+>|\w+) %", call[3]))
            kept.setdefault(call[2], f"declare {call[1]} @{call[2]}({types})")
    code = [line for line in lines if not line.startswith("declare ")]
    return "\n".join([*code, intrinsics.PRELUDE, *kept.values(), *bodies, ""])
