"""The tree as the house tests see it: rooms, modules, imports."""

from __future__ import annotations

import ast
import re
import subprocess
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "knarr"

# room -> the rooms it may import; `base` and itself always. docs/architecture.md draws it.
ARROWS: dict[str, set[str]] = {
    "base": set(),
    "spec": set(),
    "kernel": set(),
    "content": {"kernel", "spec"},
    "bundle": {"spec"},
    "image": {"content", "spec"},
    "plan": {"spec"},
    "layer": {"content", "kernel", "spec"},
    "runtime": {"plan", "kernel", "spec"},
    "registry": {"content", "spec"},
    "isolation": {"runtime", "registry", "plan", "layer", "bundle", "image", "content", "spec", "kernel"},
}
ARROWS["engine"] = {*ARROWS["isolation"], "isolation"}
ARROWS["service"] = {*ARROWS["engine"], "engine"}
ARROWS["cli"] = {*ARROWS["service"], "service"}

# Hot unless the docstring says (cold); elsewhere a module is hot when its docstring says (hot).
HOT = ("knarr.base.", "knarr.spec.", "knarr.plan.", "knarr.kernel.", "knarr.runtime.", "knarr.cli.runtime")

# What a hot module may import at module level; the cost of each was measured (docs/decisions.md).
HOT_IMPORTS = {
    "__future__", "_ctypes", "_hashlib", "_json", "_posixsubprocess", "_sha2", "_sha256", "_signal", "_socket", "_thread",
    "_struct", "binascii", "errno", "fcntl", "gc", "marshal", "os", "posix", "resource", "select", "stat", "struct",
    "sys", "time",
}  # fmt: skip


class Import(NamedTuple):
    """One imported module: ``deep`` inside a function, ``typing`` only for type checkers."""

    name: str
    line: int
    deep: bool
    typing: bool


class Module(NamedTuple):
    """One file of src/knarr."""

    path: Path
    name: str
    room: str
    text: str
    tree: ast.Module

    @property
    def where(self) -> str:
        return str(self.path.relative_to(ROOT))

    @property
    def is_hot(self) -> bool:
        doc = ast.get_docstring(self.tree) or ""
        said = re.search(r"\((hot|cold)\b", doc)
        return said[1] == "hot" if said else f"{self.name}.".startswith(HOT)

    def imports(self) -> list[Import]:
        return list(found_imports(self.tree.body, deep=False, typing=False))


@cache
def modules() -> list[Module]:
    """Every module of the package, in order of path."""
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        inside = path.relative_to(SOURCE.parent).with_suffix("")
        parts = inside.parts[:-1] if path.name == "__init__.py" else inside.parts
        text = path.read_text()
        found.append(Module(path, ".".join(parts), parts[1] if len(parts) > 1 else "", text, ast.parse(text)))
    return found


def found_imports(body: list[ast.stmt], *, deep: bool, typing: bool) -> Iterator[Import]:
    """Yield the imports of statements, those inside functions, classes and branches included."""
    for node in body:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, deep, typing)
        elif isinstance(node, ast.ImportFrom):
            name = node.module or ""
            yield Import(name, node.lineno, deep, typing)
            if name == "knarr" or name.startswith("knarr."):  # `from knarr.spec import runtime` imports a module too
                for alias in node.names:
                    yield Import(f"{name}.{alias.name}", node.lineno, deep, typing)
        else:
            inner = deep or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            checking = typing or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
            for field in ("body", "orelse", "finalbody"):
                branch_typing = checking if field == "body" else typing
                yield from found_imports(getattr(node, field, []), deep=inner, typing=branch_typing)
            for part in (*getattr(node, "handlers", []), *getattr(node, "cases", [])):
                yield from found_imports(part.body, deep=inner, typing=typing)


def room_of(name: str) -> str:
    """Return the room of an imported module of ours, "" for others and for the top."""
    parts = name.split(".")
    return parts[1] if parts[0] == "knarr" and len(parts) > 1 and (SOURCE / parts[1]).is_dir() else ""


@cache
def text_files() -> list[Path]:
    """Every text file that git tracks or would track; without git, every one that is not made by a build."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT, check=True, capture_output=True,
        ).stdout.decode()  # fmt: skip
        paths = [ROOT / name for name in listed.split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        made = {".venv", ".git", "build", "dist", "__pycache__"}
        paths = [path for path in ROOT.rglob("*") if not made & set(path.relative_to(ROOT).parts)]
    files = [path for path in paths if path.is_file() and not path.is_symlink()]
    return [path for path in files if b"\0" not in path.read_bytes()[:8192]]
