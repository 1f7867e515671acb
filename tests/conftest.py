"""pg_mlx before mlx.core, as in a user's program: it puts a fast BLAS library first, whose sums have another order."""

import os

if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    # They share the cores. BLAS would take all of them for each.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))

import pg_mlx  # noqa: F401  # isort: skip

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.browser import browser as browser  # for all folders

from pg_mlx.ops import device

BOTH_PATHS = (
    "model/",
    "training/test_golden",
    "generation/",
    "serving/",
    "cli/",
    "checkpoint/test_adapters",
    "checkpoint/test_loading",
)
"""Tests that run twice: with the CPU's operations and with a GPU's, which a Mac runs, on the CPU device."""

LONG_FILES = (
    "pages/test_code_blocks.py",
    "tools/test_frozen_app.py",
    "tools/test_metal_routes.py",
    "release/test_distribution.py",
    "examples/test_notebooks.py",
    "conversion/test_calibrated.py",
    "conversion/test_convert_faults.py",
)
"""They begin first. Else one of them may be the last, and all processes but one have nothing to do."""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "ops(path, reason): run with these operations (cpu or gpu) only")
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as for a job in the background; children inherit it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(config.option, "loadscopereorder"):  # xdist would begin with the files that have the most tests
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take long before the others."""
    folder = Path(__file__).parent
    rank = {folder / name: number for number, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: rank.get(item.path, len(rank)))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give a test the operations that its file or its marker names. The others take those of the machine."""
    file = metafunc.definition.path.relative_to(Path(__file__).parent).as_posix()
    marker = metafunc.definition.get_closest_marker("ops")
    if marker:
        assert marker.args and marker.kwargs.get("reason"), f"{metafunc.definition.nodeid}: say why"
        paths = list(marker.args)
    else:
        paths = ["cpu", "gpu"] if file.startswith(BOTH_PATHS) else []
    if paths:
        metafunc.parametrize("ops", paths, indirect=True, scope="module")


@pytest.fixture(autouse=True, scope="module")
def ops(request: pytest.FixtureRequest) -> Iterator[str]:
    """The operations of a test and of the commands that it starts."""
    before = os.environ.get("PG_MLX_OPS")
    chosen = getattr(request, "param", "auto")
    os.environ["PG_MLX_OPS"] = chosen
    with device.use(chosen):
        yield chosen
    if before is None:
        del os.environ["PG_MLX_OPS"]
    else:
        os.environ["PG_MLX_OPS"] = before
