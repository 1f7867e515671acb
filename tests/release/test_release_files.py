"""The files around a release: changelog, citation, workflows and issue forms agree with the package."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest
import yaml
from helpers.paths import ROOT

import pg_mlx
from pg_mlx.cli import COMMANDS, main

FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def test_the_version_is_written_in_one_place(capsys: pytest.CaptureFixture[str]) -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", pg_mlx.__version__)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"pg-mlx {pg_mlx.__version__}\n"
    assert pg_mlx.__version__ not in (ROOT / "pyproject.toml").read_text()
    assert pg_mlx.__version__ not in (ROOT / "CITATION.cff").read_text()


def test_the_changelog_has_this_version_under_what_is_not_released() -> None:
    headings = re.findall(r"^## \[(.+?)\](.*)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert [name for name, _ in headings][:2] == ["Unreleased", pg_mlx.__version__]
    assert all(re.fullmatch(r" - (\d{4}-\d{2}-\d{2}|not published yet)", date) for _, date in headings[1:])


def test_the_citation_can_be_read() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0" and citation["license"] == "MIT"
    assert citation["title"] and citation["authors"] and citation["message"]


@pytest.mark.parametrize("path", [*FORMS, *WORKFLOWS], ids=lambda path: path.stem)
def test_commands_in_forms_and_workflows_are_accepted(path: Path) -> None:
    text = path.read_text()
    assert isinstance(yaml.safe_load(text), dict)
    for line in re.findall(r"^ +pg-mlx (\w+ .*)$", text, re.MULTILINE):
        name, *arguments = shlex.split(re.sub(r"\$\{\{.*?\}\}", "", line))
        assert name in COMMANDS
        importlib.import_module(f"pg_mlx.cli.{name}").parser("pg-mlx").parse_args(arguments)


def test_bug_reports_bring_the_report_of_the_machine() -> None:
    form = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / "bug.yml").read_text())
    fields = {field["id"]: field for field in form["body"]}
    assert "pg-mlx doctor --report" in fields["report"]["attributes"]["description"]
    assert fields["report"]["validations"]["required"]
