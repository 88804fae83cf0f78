"""``knarr-runtime update`` (hot)."""

from __future__ import annotations

import posix

from knarr.base import fastjson
from knarr.base.errors import Unsupported, UsageError
from knarr.base.files import read_file
from knarr.runtime.update import update

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from knarr.cli.runtime.command import Context

_LARGEST = 1 << 20
_SIZES = (
    ("memory", "memory", "limit"),
    ("memory-swap", "memory", "swap"),
    ("memory-reservation", "memory", "reservation"),
)
_NUMBERS = (
    ("cpu-share", "cpu", "shares"),
    ("cpu-quota", "cpu", "quota"),
    ("cpu-period", "cpu", "period"),
    ("cpu-burst", "cpu", "burst"),
    ("cpu-idle", "cpu", "idle"),
    ("cpu-rt-period", "cpu", "realtimePeriod"),
    ("cpu-rt-runtime", "cpu", "realtimeRuntime"),
    ("pids-limit", "pids", "limit"),
    ("blkio-weight", "blockIO", "weight"),
)
_TEXTS = (("cpuset-cpus", "cpu", "cpus"), ("cpuset-mems", "cpu", "mems"))


def run(options: dict[str, Any], operands: list[str], context: Context) -> int:
    """Change the limits of a container."""
    for name in ("l3-cache-schema", "mem-bw-schema"):
        if options.get(name):
            raise Unsupported(f"option --{name}", "this host has no resctrl file system, or knarr no way to use it")
    source = options.get("resources")
    resources = _read(source) if source else _given(options)
    memory = resources.get("memory") if type(resources) is dict else None
    if type(memory) is dict and (memory.pop("kernel", None) or memory.pop("kernelTCP", None)):
        context.log.warning("limits of kernel memory are ignored: kernels no longer have them")
    update(context.root, operands[0], resources, document=source or "update")
    return 0


def _read(path: str) -> Any:
    """A file, or standard input for ``-``. Raises FileError, SpecError."""
    if path != "-":
        return fastjson.loads(read_file(path, _LARGEST), path)
    data = b""
    while len(data) <= _LARGEST and (part := posix.read(0, 65536)):
        data += part
    return fastjson.loads(data, "standard input", limit=_LARGEST)


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """What the options say, as linux.resources has it."""
    resources: dict[str, Any] = {}
    for name, section, field in _SIZES:
        if options.get(name):
            resources.setdefault(section, {})[field] = size(name, options[name])
    for name, field in (("kernel-memory", "kernel"), ("kernel-memory-tcp", "kernelTCP")):
        if options.get(name):
            resources.setdefault("memory", {})[field] = size(name, options[name])
    for name, section, field in _NUMBERS:
        if options.get(name):
            resources.setdefault(section, {})[field] = _number(name, options[name])
    for name, section, field in _TEXTS:
        if options.get(name):
            resources.setdefault(section, {})[field] = options[name]
    return resources


def _number(option: str, text: str) -> int:
    digits = text.removeprefix("-")
    if digits.isascii() and digits.isdigit() and len(digits) < 20:
        return int(text)
    raise UsageError(f"option --{option}: {text!r} is not a number")


def size(option: str, text: str) -> int:
    """``512m``, ``1.5g``, ``64KiB``, ``4096``, ``-1`` -> bytes, by powers of 1024. Raises UsageError."""
    if text == "-1":
        return -1
    word = text.strip().lower().removesuffix("b").removesuffix("i")
    unit = "kmgtp".find(word[-1:]) + 1 if word else 0
    number = word[:-1].rstrip() if unit else word
    whole, dot, fraction = number.partition(".")
    if number.isascii() and whole.isdigit() and len(number) < 19 and (not dot or fraction.isdigit()):
        return (int(whole + fraction) << 10 * unit) // int("1" + "0" * len(fraction))
    raise UsageError(f"option --{option}: {text!r} is not a size", hint="such as 4096, 512k, 64m or 1.5g")
