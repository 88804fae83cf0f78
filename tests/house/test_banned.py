"""Names that have hurt others are not used, and the repository names no workplace."""

from __future__ import annotations

import ast
import re

import pytest
from house import ROOT, Module, modules, text_files

MODULES = [pytest.param(module, id=module.name) for module in modules() if module.text]

# name -> why; found as a name, an attribute or an imported name anywhere in src
BANNED = {
    "extractall": "layers are applied by descriptor under the root (CVE-2007-4559)",
    "unpack_archive": "the same",
    "system": "no shell; posix_spawn with an argument list",
    "popen": "the same",
    "eval": "data is never code",
    "mktemp": "a name is not a file; make the file or directory",
}
# rooms that touch a container's files: a path that was resolved is stale when it is used
BY_DESCRIPTOR = {"kernel", "plan", "runtime", "layer", "content", "bundle"}
SAFE_CALLS = {"system"}  # also a plain word: only `os.system(` counts


def used_names(tree: ast.AST) -> list[tuple[str, str, int]]:
    """(object, name, line) of attributes, calls of plain names and imported names."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            found.append((ast.unparse(node.value), node.attr, node.lineno))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            found.append(("", node.func.id, node.lineno))
        elif isinstance(node, ast.ImportFrom):
            found.extend((node.module or "", alias.name, node.lineno) for alias in node.names)
    return found


def findings(module: Module) -> list[str]:
    wrong = []
    lines = module.text.splitlines()
    for owner, name, line in used_names(module.tree):
        if name in BANNED and not (name in SAFE_CALLS and owner != "os"):
            wrong.append(f"{module.where}:{line} {name}: {BANNED[name]}")
        if name == "realpath" and module.room in BY_DESCRIPTOR:
            wrong.append(f"{module.where}:{line} realpath: resolve with openat2 and keep the descriptor")
    for node in ast.walk(module.tree):
        if isinstance(node, ast.keyword) and node.arg == "shell" and ast.unparse(node.value) == "True":
            wrong.append(f"{module.where}:{node.value.lineno} shell=True: no shell")
        if (
            isinstance(node, ast.ExceptHandler)
            and catches_all(node)
            and module.room not in {"cli", "service"}
            and "# noqa: BLE001  # " not in lines[node.lineno - 1]  # the reason must follow
        ):
            wrong.append(f"{module.where}:{node.lineno} catches everything and goes on: catch what can happen")
    return wrong


def catches_all(handler: ast.ExceptHandler) -> bool:
    """Tell whether it swallows every exception: `except BaseException: undo(); raise` does not."""
    wide = {"Exception", "BaseException"}
    caught = {node.id for node in ast.walk(handler.type) if isinstance(node, ast.Name)} if handler.type else wide
    last = handler.body[-1]
    return bool(caught & wide) and not (isinstance(last, ast.Raise) and last.exc is None)


@pytest.mark.parametrize("module", MODULES)
def test_no_banned_names(module: Module) -> None:
    assert not findings(module)


@pytest.mark.parametrize(
    "line",
    [
        "tar.extractall(path)",
        "from shutil import unpack_archive",
        "os.system('ls')",
        "os.path.realpath(path)",
        "subprocess.run(x, shell=True)",
        "try:\n    f()\nexcept Exception:\n    pass",
        "try:\n    f()\nexcept:\n    pass",
    ],
)
def test_the_ban_sees(line: str) -> None:
    path = ROOT / "src" / "knarr" / "layer" / "x.py"
    assert findings(Module(path, "knarr.layer.x", "layer", line, ast.parse(line)))


# Other readers would let through what the strict ones of knarr refuse, or could be led out of a directory.
ONE_OWNER = {
    "json": {"knarr.base.fastjson"},
    "tarfile": set(),
    "zipfile": set(),
    "pickle": set(),
    # files of ours alone; in the engine, bytes that never leave the process
    "marshal": {"knarr.cli.codecache", "knarr.cli.runtime_main", "knarr.engine.create", "knarr.runtime.seccomp_cache"},
}


@pytest.mark.parametrize("library", ONE_OWNER)
def test_libraries_with_one_owner(library: str) -> None:
    using = set()
    for module in modules():
        for node in ast.walk(module.tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name.split(".")[0] == library for name in names):
                using.add(module.name)
    assert using <= ONE_OWNER[library]


def test_the_repository_names_no_workplace() -> None:
    # Put together here, so that this file does not hold what it looks for.
    patterns = [r"(?<![\w.}>-])/wo" + "rk/", r"\bfar" + "m-", r"\.\./sha" + "red"]
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
        for path in text_files()
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if any(re.search(pattern, line) for pattern in patterns)
    ]
    assert not found
