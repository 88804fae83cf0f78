"""The documents are there, their links lead somewhere, and what they list is what the project has."""

from __future__ import annotations

import ast
import re
import tomllib
from typing import TYPE_CHECKING

import pytest
from house import ROOT, modules, text_files

import knarr

if TYPE_CHECKING:
    from pathlib import Path

ROOMS = sorted({module.room for module in modules()} - {""})
PAGES = [path for path in text_files() if path.suffix == ".md"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_has_its_page(room: str) -> None:
    text = (ROOT / "docs" / f"{room}.md").read_text()
    assert text.startswith(f"# {room}"), "the page is called after the room"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, heading = target.partition("#")
        file = (page.parent / name) if name else page
        if not file.exists() or (heading and heading not in headings(file.read_text())):
            broken.append(target)
    assert not broken


@pytest.mark.parametrize("page", ["coverage.md", "hostile-images.md", "security.md"])
def test_tests_that_show_a_feature_are_there(page: str) -> None:
    missing = []
    for line in (ROOT / "docs" / page).read_text().splitlines():
        for file, names in re.findall(r"`(\w+/test_\w+\.py)`: ((?:`\w+`(?:, )?)+)", line):
            tests = (ROOT / "tests" / file).read_text()
            missing += [f"{file}: {name}" for name in re.findall(r"\w+", names) if f"def test_{name}(" not in tests]
    assert not missing


def test_rows_of_hostile_layers_are_there() -> None:
    page = (ROOT / "docs" / "hostile-images.md").read_text()
    corpus = (ROOT / "tests/layer/test_corpus.py").read_text()
    rows = {int(number) for number in re.findall(r"Row\(\s*(\d+),", corpus)}
    other = {int(number) for line in re.findall(r"^\| ([\d, ]+) \|", page, re.MULTILINE) for number in line.split(",")}
    named = {int(number) for number in re.findall(r"\brows? (\d+)", page)}
    assert named <= rows | other
    # Numbers that were never given stand for nothing.
    assert set(range(1, 132)) - rows - other == {3, 12, 20, 27, 36, 44, 52, 62, 70, 81, 90, 98, 105, 116, 124, 130}


def headings(text: str) -> set[str]:
    """Return the anchors that a Markdown page's headings get."""
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def package_name(requirement: str) -> str:
    found = re.match(r"[A-Za-z0-9-]+", requirement)
    assert found
    return found[0]


def test_dependencies_are_justified_and_locked() -> None:
    page = (ROOT / "docs" / "dependencies.md").read_text()
    runtime = {package_name(each) for each in PROJECT["project"]["dependencies"]}
    development = {package_name(each) for each in PROJECT["dependency-groups"]["dev"]}
    rows = set(re.findall(r"^\| ([a-z][a-z0-9-]+) \|", page, re.MULTILINE)) - {"package"}
    assert rows == runtime | development
    for lock, wanted in {"requirements.txt": runtime, "requirements-dev.txt": runtime | development}.items():
        text = (ROOT / lock).read_text()
        locked = set(re.findall(r"^([a-z0-9-]+)==", text, re.MULTILINE))
        assert wanted <= locked, f"run tools/lock: {lock} lacks {wanted - locked}"
        blocks = re.split(r"^(?=[a-z0-9-]+==)", text, flags=re.MULTILINE)[1:]
        assert not [block.splitlines()[0] for block in blocks if "--hash=sha256:" not in block]


def test_both_locks_agree() -> None:
    def versions(name: str) -> set[str]:
        return set(re.findall(r"^[a-z0-9-]+==[^ ;]+", (ROOT / name).read_text(), re.MULTILINE))

    assert versions("requirements.txt") <= versions("requirements-dev.txt")


def test_make_help_lists_every_target_of_the_readme() -> None:
    listed = set(re.findall(r"^([a-z0-9]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z0-9]+)\b", (ROOT / "README.md").read_text()))
    assert {"build", "demo", "test", "lint", "bench", "clean", "help"} <= listed
    assert named & listed, "the README shows how to start"


def test_public_names_load_and_match_their_types() -> None:
    for name in knarr.__all__:
        assert getattr(knarr, name) is not None
    assert {*knarr._EXPORTS, "__version__"} == set(knarr.__all__)
    assert set(knarr.__all__) <= set(dir(knarr))
    with pytest.raises(AttributeError, match="module 'knarr' has no attribute 'nothing'"):
        _ = knarr.nothing  # pyright: ignore[reportAttributeAccessIssue]


def test_type_checkers_see_the_names_that_are_loaded() -> None:
    # The TYPE_CHECKING block of knarr/__init__.py against its table.
    tree = ast.parse((ROOT / "src" / "knarr" / "__init__.py").read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.asname or alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == knarr._EXPORTS
