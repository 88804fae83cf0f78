"""The house's plan is held: who may import whom, which modules stay hot, what stays empty, how long files get."""

from __future__ import annotations

import ast

import pytest
from house import ARROWS, HOT_IMPORTS, ROOT, SOURCE, Module, found_imports, modules, room_of, text_files

MODULES = [pytest.param(module, id=module.name) for module in modules()]


def wrong_arrows(module: Module) -> list[str]:
    allowed = {module.room, "base", *ARROWS.get(module.room, set())}
    return [
        f"{module.where}:{found.line} imports {found.name}"
        for found in module.imports()
        if (room := room_of(found.name)) and room not in allowed
    ]


def test_every_room_is_in_the_plan() -> None:
    rooms = {module.room for module in modules()} - {""}
    assert rooms <= set(ARROWS)


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_downward_only(module: Module) -> None:
    if module.room == "":
        assert all(found.typing for found in module.imports() if room_of(found.name)), "the top loads names when used"
    else:
        assert not wrong_arrows(module)


def test_arrows_lead_to_lower_storeys_only() -> None:
    # A room may appear in another's list only when it cannot reach back: no cycles, also through third rooms.
    def reach(room: str) -> set[str]:
        return ARROWS[room].union(*(reach(below) for below in ARROWS[room]))

    assert [room for room in ARROWS if room in reach(room)] == []
    image, runtime = reach("image") | reach("layer") | reach("registry"), reach("runtime")
    assert not image & {"plan", "runtime"}
    assert not runtime & {"image", "layer", "registry", "content", "bundle"}


def test_the_arrow_test_sees_imports_in_functions_and_branches() -> None:
    text = (
        "def f():\n    try:\n        from knarr.engine import api\n    except OSError:\n        import knarr.cli.main\n"
        "    match 1:\n        case 1:\n            import knarr.image\n"
    )
    names = {found.name for found in found_imports(ast.parse(text).body, deep=False, typing=False)}
    assert {"knarr.engine", "knarr.engine.api", "knarr.cli.main", "knarr.image"} <= names
    sample = Module(SOURCE / "plan" / "x.py", "knarr.plan.x", "plan", text, ast.parse(text))
    assert len(wrong_arrows(sample)) == 4  # api counts twice: as room and as module


def test_init_files_are_empty() -> None:
    full = [module.where for module in modules() if module.path.name == "__init__.py" and module.room and module.text]
    assert not full


@pytest.mark.parametrize("module", [each for each in MODULES if each.values[0].is_hot])  # type: ignore[union-attr]
def test_hot_modules_import_only_cheap_ones(module: Module) -> None:
    by_name = {each.name: each for each in modules()}
    lines = module.text.splitlines()
    wrong = []
    for found in module.imports():
        if found.typing:
            continue
        ours = by_name.get(found.name)
        cheap = ours.is_hot if ours else found.name in HOT_IMPORTS or found.name.startswith("knarr.")
        if cheap or (found.deep and "# cold:" in lines[found.line - 1]):
            continue
        how = "say why in a comment `# cold: …`" if found.deep else "only hot modules at module level"
        wrong.append(f"{module.where}:{found.line} imports {found.name}: {how}")
    assert not wrong


@pytest.mark.parametrize("module", MODULES)
def test_modules_say_what_they_are_for(module: Module) -> None:
    if module.text:
        assert ast.get_docstring(module.tree), f"{module.where} has no docstring"
        # These two are read before Ctrl-C has its one line: they import no file, __future__'s neither.
        assert ("from __future__ import annotations" in module.text) == (module.name not in {"knarr", "knarr.cli.main"})


def test_no_file_is_longer_than_800_lines() -> None:
    code = {".py", ".c", ".h", ".sh", ""}
    long = {
        str(path.relative_to(ROOT)): count
        for path in text_files()
        if path.suffix in code and path.name != "LICENSE" and (count := path.read_bytes().count(b"\n")) > 800
    }
    assert not long, "ask why, and cut where a reader wants it cut"
