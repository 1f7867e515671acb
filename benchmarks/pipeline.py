"""Computes, without a Mac, what a decode step takes on one: the table in docs/metal.md. Nothing here is measured.

    python -m benchmarks.pipeline

A model of the two that work: Python, which builds a step's graph and encodes its kernels into command buffers, and the
GPU, which runs these one after the other. Taken from MLX's source: a buffer is committed after so many kernels or so
many elements of new arrays; at most 11 are in flight; and a kernel that writes keys and values copies the layer's
buffer first if a reader's command buffer is not complete. Assumed: the speeds in `Chip`, and the time of a product of
64 rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

GROUP = 64
"""Weights that share a scale and a bias, of two bytes each."""
VOCAB = 257_216
ACTIVE_BUFFERS = 10
"""MLX goes on encoding while no more buffers than these are in flight."""


@dataclass(frozen=True)
class Chip:
    """Speeds, all assumed: bytes a millisecond, and milliseconds."""

    name: str
    bandwidth: float
    kernels: int
    """After more kernels than these a buffer is committed,"""
    elements: int
    """or after new arrays of more than so many 2^20 elements."""
    start: float
    """Between two kernels."""
    encode: float
    """Python's and MLX's time for a kernel."""
    commit: float
    boundary: float
    """Between two command buffers."""
    wake: float
    """From the end of a buffer to Python's going on."""
    release: float = 0.03
    """From the end of a buffer to the release of what it has read."""
    tile: float = 0.0008
    """A tile of 16 keys in a product of 64 rows: such products have 21 to 263 in a row."""


CHIPS = (
    Chip("M2 Pro", 0.85 * 200e6, 40, 40, 0.003, 0.003, 0.010, 0.010, 0.05),
    Chip("M4 Max", 0.85 * 546e6, 50, 50, 0.002, 0.002, 0.008, 0.008, 0.04),
)


@dataclass(frozen=True)
class Model:
    """Shapes of a decoder. build: milliseconds in which Python builds a step's graph, assumed."""

    name: str
    width: int
    inner: int
    heads: int
    kv_heads: int
    layers: int
    capped: bool
    build: float
    head_dim: int = 256
    bits: int = 4
    head_bits: int = 6


MODELS = (
    Model("PaliGemma 1 3B", 2048, 16384, 8, 1, 18, False, 0.5),
    Model("PaliGemma 2 3B", 2304, 9216, 8, 4, 26, True, 0.9),
)


@dataclass(frozen=True)
class Way:
    """How a step is computed. own: with the kernels of PG_MLX_KERNELS."""

    name: str
    waits_for_layers: bool
    """Whether a step is begun when the layers of the one before are done, or as soon as it is built."""
    vectors: bool
    """Whether capped attention multiplies vectors, not 64 rows."""
    beside: int
    """Kernels before the layers."""
    cast: bool
    """Whether logits are cast before the largest is looked for."""
    own: bool = False


WAYS = (
    Way("before", False, False, 9, True),
    Way("now", True, True, 5, False),
    Way("now, own kernels", True, True, 5, False, own=True),
)


@dataclass(frozen=True)
class Kernel:
    """The work of one kernel. elements: of arrays that its command buffer sees first. writes, reads: the layer whose
    keys and values it writes or reads."""

    bytes: float = 0.0
    elements: float = 0.0
    writes: int | None = None
    reads: int | None = None
    more: float = 0.0
    """Milliseconds beside what its bytes take."""


@dataclass(frozen=True)
class Case:
    """One line of the table. keys: cache slots in use; capacity: slots of the buffers."""

    model: Model
    chip: Chip
    way: Way
    keys: int
    rows: int

    @property
    def buffer(self) -> int:
        """Elements of a layer's keys and values, the unused slots included: 256 are free at first."""
        m = self.model
        return 2 * m.kv_heads * (self.keys + 156) * m.head_dim * self.rows

    def matrix(self, outputs: int, columns: int, bits: int) -> Kernel:
        """A product with packed weights."""
        weights = outputs * columns
        return Kernel(weights * bits / 8 + weights / GROUP * 4, weights * bits / 32 + weights / GROUP * 2)

    def layer(self, number: int) -> Iterator[Kernel]:
        """The kernels of one layer."""
        m, width = self.model, self.model.width * self.rows
        wide = Kernel(8 * width, 2 * width)
        sum_and_norm = [wide] if self.way.own else [Kernel(8 * width, width)] * m.capped + [wide] * 3
        yield self.matrix((m.heads + 2 * m.kv_heads) * m.head_dim, m.width, m.bits)
        yield Kernel(elements=(m.heads + 2 * m.kv_heads) * m.head_dim * self.rows)  # rotation
        yield Kernel(elements=self.buffer, writes=number)
        half = m.kv_heads * self.keys * m.head_dim * 2 * self.rows
        if not m.capped or self.way.own:
            yield Kernel(2 * half, reads=number)
        else:
            scores = m.heads * self.keys * 2 * self.rows
            tiles = 0 if self.way.vectors else -(-self.keys // 16)
            yield Kernel(half + scores, reads=number)
            yield from [Kernel(2 * scores)] * 2  # cap, softmax
            yield Kernel(half + scores, reads=number, more=tiles * self.chip.tile)
        yield self.matrix(m.width, m.heads * m.head_dim, m.bits)
        yield from sum_and_norm
        yield self.matrix(2 * m.inner, m.width, m.bits)
        yield Kernel(elements=m.inner * self.rows)  # activation
        yield self.matrix(m.width, m.inner, m.bits)
        yield from sum_and_norm  # the norm is the next layer's, or the last

    def before_head(self) -> list[Kernel]:
        """Embedding, positions, first norm, and all layers."""
        first = [Kernel(elements=self.model.width * self.rows)] * (self.way.beside + 3)
        return first + [kernel for number in range(self.model.layers) for kernel in self.layer(number)]

    def head(self) -> list[Kernel]:
        """The output head, and the search for the largest logit."""
        logits = VOCAB * self.rows
        cast = [Kernel(6 * logits, logits)] * self.way.cast
        return [
            self.matrix(VOCAB, self.model.width, self.model.head_bits),
            *cast,
            Kernel((2 + 2 * self.way.cast) * logits),
        ]


@dataclass
class Machine:
    """The state of a simulation: clocks in milliseconds, and what is in flight."""

    case: Case
    python: float = 0.0
    gpu: float = 0.0
    ends: list[float] = field(default_factory=list)
    released: dict[int, float] = field(default_factory=dict)
    """When the keys and values of a layer are held by no reader any more."""
    copies: int = 0
    _open: list[Kernel] = field(default_factory=list)

    def encode(self, kernels: list[Kernel]) -> float:
        """Encode kernels and commit them. Returns when the last one will be done."""
        chip = self.case.chip
        for kernel in kernels:
            self.python += chip.encode
            if kernel.writes is not None and self.released.get(kernel.writes, 0.0) > self.python:
                self.copies += 1
                self.python += chip.encode
                self._open.append(Kernel(4 * self.case.buffer, self.case.buffer))
            self._open.append(kernel)
            if len(self._open) > chip.kernels or sum(k.elements for k in self._open) / 2**20 >= chip.elements + 1:
                self._commit()
        self._commit()
        return self.ends[-1]

    def _commit(self) -> None:
        if not self._open:
            return
        chip = self.case.chip
        self.python += chip.commit
        work = sum(kernel.bytes / chip.bandwidth + chip.start + kernel.more for kernel in self._open)
        self.gpu = max(self.gpu, self.python) + chip.boundary + work
        self.ends.append(self.gpu)
        self.released.update({k.reads: self.gpu + chip.release for k in self._open if k.reads is not None})
        self._open = []
        in_flight = sorted(end for end in self.ends if end > self.python)
        if len(in_flight) > ACTIVE_BUFFERS:
            self.python = in_flight[-ACTIVE_BUFFERS - 1]

    def wait(self, end: float) -> None:
        """Python goes on no earlier than this and the time to wake up."""
        self.python = max(self.python, end + self.case.chip.wake)


def simulate(case: Case, steps: int = 16) -> tuple[float, float]:
    """Milliseconds and copied layers a step, the first four left out."""
    machine, before_head, head = Machine(case), case.before_head(), case.head()
    layers_done, tokens, copies = 0.0, list[float](), list[int]()
    for _ in range(steps):
        machine.python += 0.1 + case.model.build  # 0.1 for whoever reads the tokens
        copied = machine.copies
        if case.way.waits_for_layers:
            machine.wait(layers_done)
            layers_done = machine.encode(before_head)
            tokens.append(machine.encode(head))
        else:
            tokens.append(machine.encode([*before_head, *head]))
        copies.append(machine.copies - copied)
        if len(tokens) > 1:
            machine.wait(tokens[-2])
    return (tokens[-1] - tokens[3]) / (steps - 4), sum(copies[4:]) / (steps - 4)


def table() -> str:
    """The table of docs/metal.md."""
    heads = [f"{chip.name}, {way.name}" for chip in CHIPS for way in WAYS]
    lines = ["| | " + " | ".join(heads) + " |", "|---|" + "--:|" * len(heads)]
    for model in MODELS:
        for pixels, tokens in ((448, 1024), (896, 4096)):
            for rows in (1, 8):
                cells = []
                for chip in CHIPS:
                    for way in WAYS:
                        time, copied = simulate(Case(model, chip, way, tokens + 120, rows))
                        cells.append(f"{time:.2f}" + (f" ({copied:.0f})" if copied else ""))
                what = f"{model.name}, {pixels} px, {rows} row{'s' * (rows > 1)}"
                lines.append(f"| {what} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
