"""Write what ``runtime_main`` loads at the next call: the code of a verb's modules, in one file (cold).

Imports nothing of ours before it watches: what is loaded by then would be missing in the file.
"""

from __future__ import annotations
import __future__

import ast
import marshal
import os
import sys
from importlib.machinery import PathFinder, SourceFileLoader
from types import CodeType

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

_ran: list[str] = []
# What a first call may not need, but most that follow do: profiles.
_ALSO = {"create": "knarr.runtime.seccomp_cache", "run": "knarr.runtime.seccomp_cache"}


_MOST = 64
"""Files in the directory, of 0.2 MB each; an installation has about twenty."""


class _Watch:
    """A finder of our own modules that notes the order in which they come to their ends: those they import go first."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, _target: ModuleType | None = None) -> ModuleSpec | None:
        if not name.startswith("knarr."):
            return None
        spec = PathFinder.find_spec(name, path)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def noted(module: ModuleType) -> None:
            execute(module)
            _ran.append(name)

        spec.loader.exec_module = noted  # type: ignore[method-assign]
        return spec


def watch() -> None:
    """Note every module of ours that is imported from now on."""
    sys.meta_path.insert(0, _Watch)


def save(place: str, name: str, verb: str) -> None:
    """Write the file; a place that cannot be written, or that others can write to, is no error."""
    if verb in _ALSO:
        __import__(_ALSO[verb])
    sys.meta_path.remove(_Watch)
    if not place or "knarr.cli.exit_codes" in _ran:
        return  # nowhere to put it; or something went wrong, which loads what the next call does not need
    entries = [_entry(module) for module in _ran]
    if None in entries:
        return
    from knarr.base.errors import FileError
    from knarr.base.files import write_atomic

    try:
        os.makedirs(os.path.dirname(place), 0o700, exist_ok=True)
        try:
            os.mkdir(place, 0o700)
        except FileExistsError:
            pass
        for each in (place, os.path.dirname(place)):
            facts = os.lstat(each)
            if facts.st_uid != os.geteuid() or facts.st_mode & 0o022:
                return
        write_atomic(f"{place}/{name}", marshal.dumps(entries), mode=0o600)
        _forget(place)
    except (OSError, FileError):
        pass


def _forget(place: str) -> None:
    """Keep the files written last: the others are of installations that are gone, or of writers that were killed."""
    found = sorted(os.scandir(place), key=lambda entry: entry.stat(follow_symlinks=False).st_mtime_ns)
    for entry in found[:-_MOST]:
        os.unlink(entry)


def _entry(name: str) -> tuple[str, str, int, int, bool, CodeType] | None:
    module = sys.modules[name]
    spec = module.__spec__
    if spec is None or module.__file__ is None or not isinstance(spec.loader, SourceFileLoader):
        return None
    # No docstrings and no line numbers, which nobody asks for (--debug, which prints tracebacks, does not come here),
    # and no annotations but those of classes, which records are made from: two fifths of the bytes.
    try:
        facts = os.stat(module.__file__)
        source = spec.loader.get_data(module.__file__)
        tree = _WithoutAnnotations().visit(ast.parse(source))
        flags = __future__.annotations.compiler_flag
        code = _without_lines(compile(tree, module.__file__, "exec", flags, dont_inherit=True, optimize=2))
    except (OSError, SyntaxError, ValueError):
        return None  # it is being replaced
    return name, module.__file__, facts.st_mtime_ns, facts.st_size, hasattr(module, "__path__"), code


class _WithoutAnnotations(ast.NodeTransformer):
    """What functions promise about types, and the import of ``__future__``, whose word is a flag of the compiler's."""

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.ImportFrom | None:
        return None if node.module == "__future__" else node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        node.returns = None
        names = node.args
        for each in (*names.posonlyargs, *names.args, *names.kwonlyargs, names.vararg, names.kwarg):
            if each is not None:
                each.annotation = None
        self.generic_visit(node)
        return node


def _without_lines(code: CodeType) -> CodeType:
    constants = [_without_lines(each) if isinstance(each, CodeType) else each for each in code.co_consts]
    return code.replace(co_linetable=b"", co_qualname=code.co_name, co_consts=tuple(constants))
