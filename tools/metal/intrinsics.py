"""Bodies, in LLVM's language, for the functions of Apple's intermediate representation (`air.*`).

Conversions and elementwise functions become plain instructions, so they are inlined; what lanes do together calls the
C part. Mathematical functions are the C library's, with its accuracy, also where a kernel asks for a fast one.
"""

from __future__ import annotations

import re

_TYPES = {"f32": "float", "f16": "half", "bf16": "bfloat", "f64": "double"}
_WIDTHS = {"float": 32, "half": 16, "bfloat": 16, "double": 64}
_UNARY = ("exp", "exp2", "log", "log2", "sin", "cos", "tanh", "sqrt", "fabs", "floor", "ceil", "rint", "trunc")
_BINARY = {"fmax": "maxnum", "fmin": "minnum", "pow": "pow"}
_INTEGERS = {"min.s": "smin", "max.s": "smax", "min.u": "umin", "max.u": "umax"}
_SIMD = {  # the operation's number in native/runtime.h, for floats, signed and unsigned integers
    "simd_sum": (1, 5, 5),
    "simd_max": (2, 6, 8),
    "simd_min": (3, 7, 9),
    "simd_product": (4, 0, 0),
    "simd_prefix_inclusive_sum": (0, 10, 10),
    "simd_prefix_exclusive_sum": (0, 11, 11),
    "simd_shuffle": (12, 12, 12),
    "simd_broadcast": (12, 12, 12),
    "simd_shuffle_down": (13, 13, 13),
    "simd_shuffle_up": (14, 14, 14),
    "simd_shuffle_xor": (15, 15, 15),
    "quad_sum": (16, 0, 0),
}
MEET = 17

PRELUDE = """
declare i64 @pg_simd(i32, i64, i32)
declare void @pg_matrix(ptr, ptr, ptr)
declare void @pg_barrier()
"""


class Unsupported(Exception):
    """A kernel uses what this program does not know."""


def definition(declared: str) -> str:
    """The definition for a line `declare TYPE @air.name(TYPES)`. Raises Unsupported."""
    match = re.fullmatch(r"declare (?:\w+ )*?(void|ptr|\w+|<[^>]+>) @([\w.]+)\((.*)\).*", declared)
    if match is None:
        raise Unsupported(f"the declaration {declared}")
    result, name, given = match[1], match[2], match[3]
    types = re.findall(r"<[^>]+>|\w+", given)
    parameters = ", ".join(f"{type_} %{letter}" for type_, letter in zip(types, "abcdef", strict=False))
    body = _body(name.removeprefix("air."), result, types)
    return f"define internal {result} @{name}({parameters}) alwaysinline {{\n{body}\n}}"


def _body(name: str, result: str, types: list[str]) -> str:
    words = name.split(".")
    plain = words[0].removeprefix("fast_")
    if words[0] == "convert":
        return _returned(_convert(words[1], words[3], types[0], result), result)
    if plain in _UNARY:
        return _returned(f"call {result} {_llvm(plain, result)}({types[0]} %a)", result)
    if plain == "rsqrt":
        return f"  %s = call {result} {_llvm('sqrt', result)}({result} %a)\n" + _returned(
            f"fdiv {result} {_ones(result)}, %s", result
        )
    if plain in _BINARY:
        return _returned(f"call {result} {_llvm(_BINARY[plain], result)}({result} %a, {result} %b)", result)
    if plain == "fma":
        return _returned(f"call {result} {_llvm('fma', result)}({result} %a, {result} %b, {result} %c)", result)
    if ".".join(words[:2]) in _INTEGERS:
        return _returned(
            f"call {result} {_llvm(_INTEGERS['.'.join(words[:2])], result)}({result} %a, {result} %b)", result
        )
    if words[:1] == ["clamp"] and words[1] in "su":
        return f"  %low = call {result} {_llvm(words[1] + 'max', result)}({result} %a, {result} %b)\n" + _returned(
            f"call {result} {_llvm(words[1] + 'min', result)}({result} %low, {result} %c)", result
        )
    if words[0] == "is_uniform":
        return "  ret i1 true"
    if words[0] == "make_uniform":
        return f"  ret {result} %a"
    if words[0] == "normalize_function_constant_predicate":
        return "  %n = icmp ne i8 %a, 0\n" + _returned("zext i1 %n to i8", result)
    if words[0] == "dot":
        return _dot(types[0])
    if words[:2] == ["wg", "barrier"]:
        return "  call void @pg_barrier()\n  ret void"
    if words[:2] == ["simdgroup", "barrier"]:
        return f"  %r = call i64 @pg_simd(i32 {MEET}, i64 0, i32 0)\n  ret void"
    if words[0] == "atomic" and words[1] == "fence":
        return "  ret void"
    if words[0] == "simdgroup_matrix_8x8_multiply_accumulate" and types == ["<64 x float>"] * 3 and result == types[0]:
        return _MATRIX
    if words[0] in _SIMD:
        return _simd(words, result, types)
    raise Unsupported(f"the function air.{name}")


def _returned(instruction: str, result: str) -> str:
    return f"  %r = {instruction}\n  ret {result} %r"


def _llvm(function: str, type_: str) -> str:
    return f"@llvm.{function}.{mangled(type_)}"


def mangled(type_: str) -> str:
    """How LLVM writes a type in the name of a function: "float" -> "f32", "<4 x float>" -> "v4f32"."""
    vector = re.fullmatch(r"<(\d+) x (\w+)>", type_)
    short = {long: short for short, long in _TYPES.items()}
    return f"v{vector[1]}{mangled(vector[2])}" if vector else short.get(type_, type_)


def _ones(type_: str) -> str:
    vector = re.fullmatch(r"<(\d+) x (\w+)>", type_)
    return f"<{', '.join([f'{vector[2]} 1.0'] * int(vector[1]))}>" if vector else "1.0"


def _element(type_: str) -> str:
    return type_.strip("<>").rsplit(" ", 1)[-1]


def _width(type_: str) -> int:
    element = _element(type_)
    return _WIDTHS.get(element) or int(element[1:])


def _convert(to: str, from_: str, source: str, target: str) -> str:
    wide, narrow = _width(target), _width(source)
    if source == target:
        return f"bitcast {source} %a to {target}"
    if to == from_ == "f":
        return f"{'fpext' if wide > narrow else 'fptrunc'} {source} %a to {target}"
    if to == "f":
        return f"{'sitofp' if from_ == 's' else 'uitofp'} {source} %a to {target}"
    if _element(target) == "i1":
        zero = "zeroinitializer" if source.startswith("<") else ("0.0" if from_ == "f" else "0")
        return f"{'fcmp une' if from_ == 'f' else 'icmp ne'} {source} %a, {zero}"
    if from_ == "f":
        kind = "fptosi" if to == "s" else "fptoui"
        return f"call {target} @llvm.{kind}.sat.{mangled(target)}.{mangled(source)}({source} %a)"
    if wide < narrow:
        return f"trunc {source} %a to {target}"
    if wide > narrow:
        return f"{'sext' if from_ == 's' else 'zext'} {source} %a to {target}"
    return f"bitcast {source} %a to {target}"


def _dot(vector: str) -> str:
    count = int(vector.strip("<>").split()[0])
    lines = [f"  %p = fmul {vector} %a, %b", "  %s0 = extractelement " + vector + " %p, i32 0"]
    for i in range(1, count):
        lines += [
            f"  %e{i} = extractelement {vector} %p, i32 {i}",
            f"  %s{i} = fadd {_element(vector)} %s{i - 1}, %e{i}",
        ]
    return "\n".join([*lines, f"  ret {_element(vector)} %s{count - 1}"])


def _simd(words: list[str], result: str, types: list[str]) -> str:
    """A value of at most 64 bits goes to the C part as bits; 16-bit floats as floats where lanes calculate."""
    floats, signed, unsigned = _SIMD[words[0]]
    calculates = not 12 <= floats <= 15
    operation = floats if result in _WIDTHS else (unsigned if words[1] == "u" else signed)
    if operation == 0:
        raise Unsupported(f"the function air.{'.'.join(words)}")
    as_float = calculates and result in ("half", "bfloat")
    width = 32 if as_float else _width(result)
    extend = "sext" if words[1] == "s" else "zext"
    lines = [f"  %x = fpext {result} %a to float"] if as_float else []
    value, type_ = ("%x", "float") if as_float else ("%a", result)
    lines.append(f"  %i = bitcast {type_} {value} to i{width}")
    lines.append("  %v = add i64 %i, 0" if width == 64 else f"  %v = {extend} i{width} %i to i64")
    argument = "0"
    if len(types) > 1:
        lines.append("  %n = add i32 %b, 0" if types[1] == "i32" else f"  %n = zext {types[1]} %b to i32")
        argument = "%n"
    lines.append(f"  %w = call i64 @pg_simd(i32 {operation}, i64 %v, i32 {argument})")
    lines.append("  %o = add i64 %w, 0" if width == 64 else f"  %o = trunc i64 %w to i{width}")
    lines.append(f"  %y = bitcast i{width} %o to {type_}")
    return (
        "\n".join(lines)
        + "\n"
        + (_returned(f"fptrunc float %y to {result}", result) if as_float else f"  ret {result} %y")
    )


def _pair(name: str) -> str:
    return (
        f"  %p{name} = alloca [2 x float]\n  %q{name} = getelementptr float, ptr %p{name}, i64 1\n"
        f"  %x{name} = extractelement <64 x float> %{name}, i32 0\n  store float %x{name}, ptr %p{name}\n"
        f"  %y{name} = extractelement <64 x float> %{name}, i32 1\n  store float %y{name}, ptr %q{name}\n"
    )


_MATRIX = (
    "".join(map(_pair, "abc"))
    + "  call void @pg_matrix(ptr %pa, ptr %pb, ptr %pc)\n  %u = load float, ptr %pc\n  %v = load float, ptr %qc\n"
    + "  %r0 = insertelement <64 x float> poison, float %u, i32 0\n"
    + "  %r = insertelement <64 x float> %r0, float %v, i32 1\n  ret <64 x float> %r"
)
"""A lane holds two of the 64 numbers of an 8 x 8 matrix; the first two are used."""
