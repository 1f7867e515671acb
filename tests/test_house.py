"""The layout of the package is what CONTRIBUTING.md says, and stays so."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from helpers import house
from helpers.paths import ROOT

MAX_LINES = 300

MODEL_FILES = (
    *("paligemma", "siglip", "connector", "gemma", "residual", "linear", "config", "cache", "attention_mask"),
)
"""They must not know on which device they run."""

LIGHT = (
    *(
        "pg_mlx",
        "pg_mlx.batch",
        "pg_mlx.cli",
        "pg_mlx.cli.batch",
        "pg_mlx.client",
        "pg_mlx.errors",
        "pg_mlx.files.json",
        "pg_mlx.memory.size",
        "pg_mlx.parallel.shares",
    ),
    *("pg_mlx.processor", "pg_mlx.regions", "pg_mlx.serving.error_codes", "pg_mlx.threads", "pg_mlx.timeline"),
    *("pg_mlx.training.dataset", "pg_mlx.training.scores"),
    *("pg_mlx.ops.blas", "pg_mlx.serving.worker.framing", "pg_mlx.serving.worker.supervisor"),
)
"""They load no MLX: it takes long to import, and a client's or supervisor's process must survive what MLX does."""

EMPTY = ("ops", "memory", "parallel", "serving", "serving/worker")
"""Packages whose __init__.py imports nothing, so that a light module in them stays light."""

SAME_NAME = {
    "Attention": "siglip and gemma each have one; a model is read file by file",
    "Block": "as Attention",
    "MLP": "as Attention",
}
"""Public classes of one name in several modules, and why that is right."""

MESSAGES = ("serving.structs", "serving.http.schemas", "serving.worker.schemas", "client.client")
"""Modules whose classes are the form in which something is sent as JSON. They may have the name of what is sent."""


# --- imports -------------------------------------------------------------------------------------------


def test_no_imports_go_in_a_circle() -> None:
    assert house.circles(house.graph()) == []


def test_a_circle_would_be_found() -> None:
    assert house.circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [["b", "c"]]


def test_lazy_and_type_checking_imports_count() -> None:
    edges = house.graph()
    assert "pg_mlx.files.arrays" in edges["pg_mlx.regions.mask_vae"]  # in a function
    assert "pg_mlx.processor" in edges["pg_mlx"]  # under TYPE_CHECKING
    assert "pg_mlx.ops.device" in edges["pg_mlx.gemma"]  # from ..ops import device


def test_imports_follow_the_arrows() -> None:
    reached, every = house.arrows()
    parts = {*reached, *every}
    against = []
    for module in house.modules():
        if module == "pg_mlx":
            continue  # the face of the package: it offers names of all parts, and imports them when they are used
        part = house.part_of(module, parts)
        assert part is not None, f"{module} has no place in the arrows of CONTRIBUTING.md"
        for other, name in house.imported(module):
            if other == "pg_mlx":
                allowed = name == "__version__"
            else:
                target = house.part_of(other, parts)
                allowed = target == part or target in every or target in reached.get(part, set())
            if not allowed:
                against.append(f"{module} -> {other}")
    assert against == []


def test_the_arrows_have_no_circle_of_their_own() -> None:
    reached, every = house.arrows()
    assert [part for part, others in reached.items() if part in others] == []
    assert all(not reached.get(part) for part in every)


def test_parts_that_must_not_know_each_other() -> None:
    reached, _ = house.arrows()
    walls = {"processor": "regions", "regions": "quantization", "quantization": "processor"}
    for one, other in walls.items():
        assert other not in reached[one] and one not in reached[other]
    for part in (*walls, "files", "client"):
        assert "paligemma" not in reached[part], f"{part} may import the model"


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_load_no_mlx(module: str) -> None:
    code = f"import sys, {module}; print(sorted(name for name in sys.modules if name.split('.')[0] == 'mlx'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("package", EMPTY)
def test_packages_of_light_modules_import_nothing(package: str) -> None:
    path = house.PACKAGE / package / "__init__.py"
    nodes = ast.walk(house.tree_of(path))
    assert [node for node in nodes if isinstance(node, (ast.Import, ast.ImportFrom))] == []


# --- the device ----------------------------------------------------------------------------------------


def test_what_decides_the_device_is_read_through_its_module() -> None:
    """A name that was imported would keep its own meaning when the module is told to decide otherwise."""
    source = house.tree_of(house.PACKAGE / "ops/device.py")
    names = {node.name for node in source.body if isinstance(node, ast.FunctionDef)} - {"dtype_name"}  # decides nothing
    assert {"gpu_ops", "is_gpu", "evaluate", "fused"} <= names
    by_name = [
        f"{module}: {name}"
        for module in house.modules()
        for other, name in house.imported(module)
        if other == "pg_mlx.ops.device" and name in names
    ]
    assert by_name == []


@pytest.mark.parametrize("name", MODEL_FILES)
def test_model_files_do_not_ask_for_the_device(name: str) -> None:
    assert not re.search(r"gpu_ops|is_gpu|on_gpu", (house.PACKAGE / f"{name}.py").read_text(encoding="utf-8"))


# --- files and names -----------------------------------------------------------------------------------


def test_no_module_is_long() -> None:
    lengths = {module: len(path.read_text(encoding="utf-8").splitlines()) for module, path in house.modules().items()}
    assert {module: lines for module, lines in lengths.items() if lines > MAX_LINES} == {}


def test_no_test_file_is_long() -> None:
    files = list((ROOT / "tests").rglob("*.py"))
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert {name: lines for name, lines in lengths.items() if lines > MAX_LINES} == {}


def test_no_two_test_files_have_one_name() -> None:
    """pytest imports both by that name, and refuses the second."""
    names = Counter(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []


def test_a_public_class_name_has_one_meaning() -> None:
    places = defaultdict(set)
    for module, path in house.modules().items():
        if module.removeprefix("pg_mlx.") in MESSAGES:
            continue
        for node in house.tree_of(path).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].add(module)
    several = {name: sorted(modules) for name, modules in places.items() if len(modules) > 1}
    assert {name: modules for name, modules in several.items() if name not in SAME_NAME} == {}
    assert set(SAME_NAME) <= set(several), "a name of the list is not shared any more"


def test_no_file_changes_the_path_of_imports() -> None:
    folders = ("tests", "benchmarks", "demo", "tools", "pg_mlx")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py") if path != Path(__file__)]
    assert [str(path) for path in files if "sys.path.insert" in path.read_text(encoding="utf-8")] == []


def test_no_test_imports_another_test() -> None:
    found = []
    for path in (ROOT / "tests").rglob("*.py"):
        for node in ast.walk(house.tree_of(path)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found += [f"{path.name}: {name}" for name in names if name.split(".")[-1].startswith("test_")]
    assert found == []


# --- CONTRIBUTING.md -----------------------------------------------------------------------------------


def test_the_tree_is_the_house() -> None:
    listed = house.tree_paths()
    assert [path for path in listed if not (ROOT / path).exists()] == [], "in the tree of CONTRIBUTING.md, not here"
    missing = [str(path.relative_to(ROOT)) for path in house.modules().values() if path.name != "__init__.py"]
    assert sorted(set(missing) - set(listed)) == [], "here, not in the tree of CONTRIBUTING.md"
    assert len(listed) == len(set(listed))


def test_every_answer_of_the_page_is_where_it_says() -> None:
    claims = list(house.claims())
    wrong = []
    for path, name in claims:
        file = ROOT / path
        if not file.is_file() or not re.search(rf"\b{name}\b", file.read_text(encoding="utf-8")):
            wrong.append(f"{path}: {name}")
    assert wrong == []
    assert len(claims) >= 30


def test_ten_questions_are_answered_through_the_tree() -> None:
    """Each path that answers is a line of the tree, so a reader finds it there, too."""
    assert len(house.questions()) >= 10
    listed = set(house.tree_paths())
    assert [path for path, _ in house.claims() if path not in listed] == []


def test_the_source_distribution_holds_every_folder_of_the_house() -> None:
    """Without MANIFEST.in it would hold some tests without their files, and no pages."""
    lines = (ROOT / "MANIFEST.in").read_text().splitlines()
    grafted = {line.split()[1] for line in lines if line.startswith("graft ")}
    tree = (ROOT / "CONTRIBUTING.md").read_text().partition("```tree\n")[2].partition("```")[0]
    folders = {match[1] for match in re.finditer(r"^(\w+)/", tree, re.MULTILINE)}
    assert grafted == folders - {"pg_mlx"} and {"tests", "docs"} <= grafted
    assert {"convert.py", "generate.py", "CONTRIBUTING.md", ".ci/run"} <= set(lines[0].split()[1:])
