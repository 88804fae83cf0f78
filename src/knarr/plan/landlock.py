"""Landlock rules of an annotation -> operations (hot, pure).

A process gives up access by Landlock, for itself and all that descend from it; no privilege is needed but no_new_privs.
runtime-spec has no field for it, so the rules are JSON in the annotation ``org.knarr.landlock`` (docs/config.md).
landlock(7), landlock_create_ruleset(2), landlock_add_rule(2), landlock_restrict_self(2).
"""

from __future__ import annotations

from knarr.base import fastjson
from knarr.base.errors import KnarrError, SpecError, SpecFinding, Unsupported
from knarr.base.fastjson import pointer_token
from knarr.plan import ops
from knarr.plan.host import LANDLOCK as ANNOTATION
from knarr.plan.ops import Op

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

POINTER = f"/annotations/{ANNOTATION}"

_FS = (  # in the kernel's order: the position is the bit
    *("execute", "write_file", "read_file", "read_dir", "remove_dir", "remove_file", "make_char", "make_dir"),
    *("make_reg", "make_sock", "make_fifo", "make_block", "make_sym", "refer", "truncate", "ioctl_dev"),
)
_FS_OF_ABI = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}  # how many of them a version has; later ones added none
_GROUPS = {
    "read": ("read_file", "read_dir"),
    "write": (
        *("write_file", "truncate", "make_reg", "make_dir", "make_sym", "make_sock", "make_fifo"),
        *("remove_file", "remove_dir", "refer"),
    ),
}
_NET = ("bind", "connect")
_SCOPES = ("abstract-unix-socket", "signal")
_NET_ABI, _SCOPE_ABI, _NEWEST = 4, 6, 7
_DEFAULT_ABI = 3  # the first that can refuse every way to change a file
_LINUX = {1: "5.13", 2: "5.19", 3: "6.2", 4: "6.7", 5: "6.10", 6: "6.12", 7: "6.15"}


def landlock_ops(config: dict[str, Any], abi: int, slot: int) -> list[Op]:
    """The rules of a config.json's annotation; none without it. ``abi``: the kernel's version of Landlock, 0 for none.

    The ruleset is kept in ``slot``. Raises SpecError for rules that are none, Unsupported for what the kernel lacks.
    """
    text = (config.get("annotations") or {}).get(ANNOTATION)
    if text is None:
        return []
    rules = _Rules(text)
    if rules.findings:
        raise SpecError("config.json", rules.findings)
    for needed, what in rules.needs:
        if abi < needed:
            have = f"this kernel has version {abi}" if abi else "this kernel has none, or it is not enabled (lsm=)"
            why = f"it takes Landlock version {needed} (Linux {_LINUX[needed]}), {have}"
            hint = "a smaller number as abi controls fewer kinds of access" if abi and what == "paths" else ""
            raise Unsupported(f"controlling {what} with Landlock", why, pointer=POINTER, hint=hint)
    result = [Op("landlock_create", (slot, rules.fs, rules.net, rules.scoped), (), POINTER)]
    result += [Op("landlock_path", (slot, access, flags), (path,), POINTER) for path, access, flags in rules.paths]
    result += [Op("landlock_port", (slot, access, port), (), POINTER) for port, access in rules.ports]
    result.append(Op("landlock_restrict", (slot,), (), POINTER))
    return result


class _Rules:
    """The document, read and checked; ``findings`` says what is wrong with it."""

    __slots__ = ("findings", "fs", "needs", "net", "paths", "ports", "scoped")

    def __init__(self, text: str) -> None:
        self.findings: list[SpecFinding] = []
        self.paths: list[tuple[str, int, int]] = []
        self.ports: list[tuple[int, int]] = []
        self.needs: list[tuple[int, str]] = []
        self.fs = self.net = self.scoped = 0
        try:
            document = fastjson.loads(text.encode("utf-8", "surrogateescape"), ANNOTATION)
        except KnarrError as error:
            self._wrong("", str(error))
            return
        if type(document) is not dict or not document.keys() & {"paths", "ports", "scopes"}:
            self._wrong("", "must be an object with paths, ports or scopes")
            return
        for key in document:
            if key not in ("abi", "paths", "ports", "scopes"):
                self._wrong(pointer_token(key), "is not known")
        abi = document.get("abi", _DEFAULT_ABI)
        if type(abi) is not int or not 1 <= abi <= _NEWEST:
            self._wrong("/abi", f"must be a version of Landlock, 1 to {_NEWEST}")
            return
        if "paths" in document:
            self._read_paths(document["paths"], abi)
        if "ports" in document:
            self.net = 3
            self.needs.append((_NET_ABI, "ports"))
            self._read_ports(document["ports"])
        if "scopes" in document:
            self.needs.append((_SCOPE_ABI, "scopes"))
            for position, name in enumerate(self._list(document["scopes"], "/scopes")):
                if name in _SCOPES:
                    self.scoped |= 1 << _SCOPES.index(name)
                else:
                    self._wrong(f"/scopes/{position}", f"{name!r} is not one of {', '.join(_SCOPES)}")

    def _wrong(self, where: str, why: str) -> None:
        self.findings.append(SpecFinding(POINTER, f"{where}: {why}" if where else why))

    def _list(self, value: Any, where: str) -> list[Any]:
        if type(value) is list:
            return value
        self._wrong(where, "must be a list")
        return []

    def _entries(self, value: Any, where: str, keys: set[str]) -> list[tuple[str, dict[str, Any]]]:
        found = []
        for position, entry in enumerate(self._list(value, where)):
            at = f"{where}/{position}"
            if type(entry) is not dict or not entry.keys() <= keys:
                self._wrong(at, f"must be an object with {', '.join(sorted(keys))}")
            else:
                found.append((at, entry))
        return found

    def _read_paths(self, value: Any, abi: int) -> None:
        self.needs.append((abi, "paths"))
        known = _FS[: _FS_OF_ABI[min(abi, 5)]]
        self.fs = (1 << len(known)) - 1
        for at, entry in self._entries(value, "/paths", {"path", "access", "optional"}):
            path, optional = entry.get("path"), entry.get("optional", False)
            if type(path) is not str or not path.startswith("/"):
                self._wrong(f"{at}/path", "must be an absolute path")
                continue
            if type(optional) is not bool:
                self._wrong(f"{at}/optional", "must be true or false")
            access = 0
            for position, name in enumerate(self._list(entry.get("access"), f"{at}/access")):
                # Of a group what this version controls: the others are open to all anyway.
                group = _GROUPS.get(str(name))
                names = [str(name)] if group is None else [right for right in group if right in known]
                if not all(right in known for right in names):
                    later = name in _FS and f"comes with a later version than {abi}"
                    self._wrong(f"{at}/access/{position}", f"{name!r} {later or 'is no access to a path'}")
                    continue
                access |= sum(1 << known.index(right) for right in names)
            if not access:
                self._wrong(f"{at}/access", "must name at least one kind of access")
            self.paths.append((path, access, ops.OPTIONAL if optional else 0))

    def _read_ports(self, value: Any) -> None:
        for at, entry in self._entries(value, "/ports", {"port", "access"}):
            port, access = entry.get("port"), 0
            if type(port) is not int or not 0 <= port <= 65535:
                self._wrong(f"{at}/port", "must be a TCP port, 0 to 65535")
                continue
            for position, name in enumerate(self._list(entry.get("access"), f"{at}/access")):
                if name in _NET:
                    access |= 1 << _NET.index(name)
                else:
                    self._wrong(f"{at}/access/{position}", f"{name!r} is neither bind nor connect")
            if not access:
                self._wrong(f"{at}/access", "must name bind or connect")
            self.ports.append((port, access))
