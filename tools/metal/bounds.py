"""Checks before every read and write of a kernel: is it inside of the object that its address was made from?

Objects are buffers (all of the buffer that a view lies in), variables of threadgroup memory, and a thread's own arrays.
Where the answer is no, the C part notes it, and the access goes to other memory instead. LLVM removes the checks that
it can answer itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from .air import Argument, Module, leading_type, signature, split_types
from .intrinsics import Unsupported

PRELUDE = """
declare ptr @pg_fault(i32, i32, i64)
define internal i1 @pg_inside(ptr %p, i64 %n, ptr %base, i64 %size) alwaysinline {
  %a = ptrtoint ptr %p to i64
  %b = ptrtoint ptr %base to i64
  %offset = sub i64 %a, %b
  %room = sub i64 %size, %n
  %inside = icmp ule i64 %offset, %room
  %fits = icmp ule i64 %n, %size
  %good = and i1 %inside, %fits
  ret i1 %good
}
define internal ptr @pg_check(i1 %good, ptr %p, ptr %base, i32 %site, i32 %kind) alwaysinline {
  br i1 %good, label %fine, label %bad
bad:
  %a = ptrtoint ptr %p to i64
  %b = ptrtoint ptr %base to i64
  %offset = sub i64 %a, %b
  %other = call ptr @pg_fault(i32 %site, i32 %kind, i64 %offset)
  br label %fine
fine:
  %q = phi ptr [ %p, %0 ], [ %other, %bad ]
  ret ptr %q
}
"""

_SIZES = {"float": 4, "half": 2, "bfloat": 2, "double": 8, "ptr": 8, "i1": 1}
_NAME = r"[%@](?:\"[^\"]+\"|[\w.$-]+)"


@dataclass(frozen=True)
class Checked:
    """A module with checks. sites: what each place is, by its number: the object's name. unchecked: accesses whose
    object is not known from the text."""

    text: str
    sites: tuple[str, ...]
    unchecked: tuple[str, ...]


@dataclass(frozen=True)
class _Object:
    name: str
    base: str
    size: str


def instrument(module: Module) -> Checked:
    """Put a check before each access. The kernel gets two more arguments for each buffer: where its memory begins, and
    its size (see `pg_entry` in kernel.py). Raises Unsupported."""
    types = dict(re.findall(r"^(%\S+|%\"[^\"]+\") = type (.*)$", module.text, re.M))
    match = signature(module.text, module.name)
    parameters = split_types(match["arguments"])
    buffers = [(i, a) for i, a in enumerate(module.arguments) if a.kind == "buffer"]
    head = ", ".join(parameters + [f"ptr %pg.low{i}, i64 %pg.size{i}" for i, _ in buffers])
    start, stop = match.span("arguments")
    end = module.text.index("\n}\n", stop)
    body = module.text[stop:end].splitlines()
    names = [part.split()[-1] if "%" in part else f"%{i}" for i, part in enumerate(parameters)]
    objects = _objects(module, body, types, dict(zip(names, module.arguments, strict=True)))
    work = _Work(objects, types, body)
    body = [piece for line in body for piece in work.line(line)]
    text = module.text[:start] + head + "\n".join(body) + module.text[end:] + PRELUDE
    return Checked(text, tuple(work.sites), tuple(work.unchecked))


def size_of(type_: str, types: Mapping[str, str]) -> int:
    """Bytes of a value of a type in memory. Raises Unsupported."""
    if type_ in _SIZES:
        return _SIZES[type_]
    if re.fullmatch(r"i\d+", type_):
        return max(1, int(type_[1:]) // 8)
    if type_ in types:
        return size_of(types[type_], types)
    array = re.fullmatch(r"\[(\d+) x (.*)\]|<(\d+) x (.*)>", type_)
    if array:
        count, element = (array[1], array[2]) if array[1] else (array[3], array[4])
        return int(count) * size_of(element, types)
    if type_.startswith("{"):
        size, widest = 0, 1
        for part in split_types(type_.strip("{} ")):
            own = size_of(part, types)
            step = _alignment(part, types)
            size, widest = -(-size // step) * step + own, max(widest, step)
        return -(-size // widest) * widest
    raise Unsupported(f"the type {type_}")


def _alignment(type_: str, types: Mapping[str, str]) -> int:
    if type_ in types:
        return _alignment(types[type_], types)
    if type_.startswith("["):
        return _alignment(type_.split(" x ", 1)[1][:-1], types)
    if type_.startswith("{"):
        return max(_alignment(part, types) for part in split_types(type_.strip("{} ")))
    return 1 << (size_of(type_, types) - 1).bit_length()


def _objects(
    module: Module, body: list[str], types: Mapping[str, str], arguments: Mapping[str, Argument]
) -> dict[str, _Object]:
    """What addresses are made from, by its name in the text."""
    found = {}
    for number, (name, argument) in enumerate(arguments.items()):
        if argument.kind == "buffer":
            label = f"buffer {argument.index} ({argument.name})"
            found[name] = _Object(label, f"%pg.low{number}", f"%pg.size{number}")
    for line in body:
        alloca = re.match(rf"  ({_NAME}) = alloca (.*?)(?:, align \d+)?$", line)
        if alloca:
            found[alloca[1]] = _Object(f"a thread's own {alloca[2]}", alloca[1], str(size_of(alloca[2], types)))
    for line in re.findall(r"^@.*$", module.text, re.M):
        variable = re.match(rf"({_NAME}) = .*?(?:global|constant) ", line)
        if variable and not variable[1].startswith("@llvm."):
            type_ = leading_type(line[variable.end() :])
            shared = "threadgroup memory" if variable[1].startswith("@pg_shared") else "constant"
            found[variable[1]] = _Object(f"{shared} {type_}", variable[1], str(size_of(type_, types)))
    return found


class _Work:
    """Goes through a kernel's lines."""

    def __init__(self, objects: dict[str, _Object], types: Mapping[str, str], body: list[str]):
        self.objects, self.types = objects, types
        made = (re.match(rf"  ({_NAME}) = (.*)$", line) for line in body)
        self.definitions = {match[1]: match[2] for match in made if match}
        stores = (re.match(rf"  store ptr ({_NAME}), ptr ({_NAME})", line) for line in body)
        self.stored = [(match[1], match[2]) for match in stores if match]
        self.sites: list[str] = []
        self.unchecked: list[str] = []
        self._roots: dict[str, tuple[str, ...]] = {}

    def line(self, line: str) -> list[str]:
        """The line with what must stand before it."""
        load = re.search(r"= load (?:volatile )?", line)
        if load:
            type_ = leading_type(line[load.end() :])
            return self._access(line, load.end() + len(type_), str(size_of(type_, self.types)), 0)
        store = re.match(r"  store (?:volatile )?", line)
        if store:
            value = split_types(line[store.end() :])[0]
            stored = size_of(leading_type(value), self.types)
            return self._access(line, store.end() + len(value), str(stored), 1)
        if re.search(r"(= atomicrmw|= cmpxchg)", line):
            raise Unsupported(f"an atomic operation: {line.strip()}")
        copy = re.search(r"call void @llvm\.mem(cpy|move|set)\S*?\(", line)
        if copy:
            parts = split_types(line[copy.end() : line.rindex(")")])
            size = parts[2].split()[-1]
            before = self._access(line, copy.end(), size, 1)
            if copy[1] != "set":
                second = before[-1].index(parts[1])
                before[-1:] = self._access(before[-1], second, size, 0)
            return before
        return [line]

    def _access(self, line: str, start: int, size: str, kind: int) -> list[str]:
        """The line with its first pointer from `start` on checked."""
        pointer = re.compile(r"\bptr (?:align \d+ )?(getelementptr \(.*?\)(?=[,)]|$)|" + _NAME + ")").search(
            line, start
        )
        if pointer is None:
            raise Unsupported(line)
        roots = self._root(pointer[1])
        if not roots:
            self.unchecked.append(line.strip())
            return [line]
        objects, site = [self.objects[root] for root in roots], len(self.sites)
        self.sites.append(" or ".join(one.name for one in objects))
        before = []
        for at, one in enumerate(objects):
            inside = f"call i1 @pg_inside(ptr {pointer[1]}, i64 {size}, ptr {one.base}, i64 {one.size})"
            before.append(f"  %pg.i{site}.{at} = {inside}")
            if at:
                before.append(
                    f"  %pg.g{site}.{at} = or i1 %pg.{'g' if at > 1 else 'i'}{site}.{at - 1}, %pg.i{site}.{at}"
                )
        good = f"%pg.{'g' if len(objects) > 1 else 'i'}{site}.{len(objects) - 1}"
        given = f"i1 {good}, ptr {pointer[1]}, ptr {objects[0].base}, i32 {site}, i32 {kind}"
        before.append(f"  %pg.p{site} = call ptr @pg_check({given})")
        return [*before, f"{line[: pointer.start(1)]}%pg.p{site}{line[pointer.end(1) :]}"]

    def _root(self, pointer: str) -> tuple[str, ...]:
        """The objects that an address may have been made from; none if that is not known."""
        if pointer in self._roots:
            return self._roots[pointer]
        found: set[str] = set()
        seen: set[str] = set()
        todo = [pointer]
        while todo:
            name = todo.pop()
            if name in seen:
                continue
            seen.add(name)
            if name in self.objects:
                found.add(name)
                continue
            made = name if name.startswith("getelementptr") else self.definitions.get(name, "")
            if made.startswith("load ptr"):  # from an array of addresses: what was stored into it
                array = self._root(made.rsplit("ptr ", 1)[-1].split(",")[0])
                todo += [value for value, where in self.stored if array and self._root(where) == array] or ["?"]
            elif made.startswith("phi ptr"):
                todo += re.findall(rf"\[ ({_NAME}),", made)
            elif made.startswith(("getelementptr", "bitcast ptr", "select")):
                todo += re.findall(rf"\bptr ({_NAME})", made)[: 2 if made.startswith("select") else 1]
            else:
                found.add("?")
        self._roots[pointer] = () if "?" in found else tuple(sorted(found))
        return self._roots[pointer]
