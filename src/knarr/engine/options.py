"""The texts people type for docker and podman (``-v /a:/b:ro``, ``512m``, ``nofile=1024``) -> the records of bundle.

Used by the command line and by the library. Every refusal says what was expected; nothing is ignored.
"""

from __future__ import annotations

import os

from knarr.base.errors import FileError, UsageError
from knarr.base.files import read_file
from knarr.bundle.options import Ulimit, VolumeMount
from knarr.bundle.selinux import parse_words
from knarr.spec.signals import signal_number

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_LIMITS = (
    "as", "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss", "rtprio",
    "rttime", "sigpending", "stack",
)  # fmt: skip
ENV_FILE_LIMIT = 1 << 20


def parse_size(text: str, what: str) -> int:
    """Bytes from ``100``, ``64k``, ``512m``, ``2g``, ``1.5GiB`` (powers of 1024, as docker and podman count)."""
    number = text.strip().lower()
    for ending in ("ib", "b"):
        if number.endswith(ending) and number[: -len(ending)][-1:] in "kmgt":
            number = number.removesuffix(ending)
            break
    unit = number[-1:] if number[-1:].isalpha() else ""
    digits = number[: len(number) - len(unit)]
    whole, dot, fraction = digits.partition(".")
    plain = digits.isascii() and whole.isdigit() and (not dot or fraction.isdigit())
    if unit not in _UNITS or not plain or len(digits) > 18:
        raise UsageError(f"{what} {text!r} is not a size", hint="write bytes, or a number with k, m, g or t")
    return int(float(digits) * _UNITS[unit]) if dot else int(digits) * _UNITS[unit]


def parse_cpus(text: str) -> float:
    """A number of processors such as ``0.5`` or ``2``."""
    whole, dot, fraction = text.partition(".")
    if not text.isascii() or len(text) > 12 or not (whole + fraction).isdigit() or (dot and not fraction):
        raise UsageError(f"cpus {text!r} is not a number such as 0.5 or 2")
    value = float(text)
    if value == 0:
        raise UsageError("cpus 0 would never run", hint="leave it out for no limit")
    return value


def parse_integer(text: str, what: str) -> int:
    """A whole number in ASCII digits, perhaps negative."""
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit()) or len(digits) > 18:
        raise UsageError(f"{what} {text!r} is not a whole number")
    return int(text)


def parse_ulimit(text: str) -> Ulimit:
    """``nofile=1024`` or ``nofile=1024:2048`` (soft:hard); -1 or ``unlimited`` for none."""
    name, equals, value = text.partition("=")
    soft, _, hard = value.partition(":")
    if not equals or name.lower().removeprefix("rlimit_") not in _LIMITS:
        raise UsageError(f"ulimit {text!r} should be NAME=SOFT[:HARD]", hint=f"names are {', '.join(_LIMITS)}")

    def number(part: str) -> int:
        return -1 if part in ("-1", "unlimited") else parse_integer(part, f"ulimit {name}")

    low, high = number(soft), number(hard or soft)
    if low < -1 or high < -1 or (high != -1 and (low == -1 or low > high)):
        raise UsageError(f"ulimit {text!r}: the soft limit should not be above the hard one")
    return Ulimit(name.lower().removeprefix("rlimit_"), low, high)


def parse_volume(text: str) -> VolumeMount:
    """``SOURCE:TARGET[:OPTIONS]`` of ``-v``; a source that starts with . or ~ is completed. Raises UsageError.

    ``z`` and ``Z`` ask for SELinux labels, and are nothing where there are none.
    """
    parts = text.split(":")
    if len(parts) not in (2, 3) or not all(parts[:2]):
        hint = "a directory of the host comes first, then its place in the container"
        raise UsageError(f"volume {text!r} should be SOURCE:TARGET[:OPTIONS]", hint=hint)
    source, target, words = parts[0], parts[1], parts[2].split(",") if len(parts) == 3 else []
    options = [word for word in words if word not in ("", "rw", "ro", "z", "Z")]
    if "z" in words and "Z" in words:
        raise UsageError(f"volume {text!r}: with z all containers may use it, with Z this one alone")
    relabel: Any = "shared" if "z" in words else "private" if "Z" in words else ""
    return VolumeMount("bind", target, _source(source, text), "ro" in words, tuple(options), relabel=relabel)


def _source(source: str, text: str) -> str:
    """The absolute path of a bind mount's source, which must exist."""
    if not source.startswith(("/", ".", "~")):
        raise UsageError(
            f"volume {text!r}: {source!r} is the name of a volume, which knarr does not have",
            hint="give a path of the host: /… or ./…",
        )
    path = os.path.expanduser(source) if source.startswith("~") else source
    path = os.path.abspath(path)
    try:
        os.stat(path)
    except OSError as error:
        raise FileError("mount", path, error.errno or 0) from None
    return path


def parse_mount(text: str) -> VolumeMount:
    """``type=bind,source=/a,target=/b,readonly`` or ``type=tmpfs,target=/t,tmpfs-size=64m`` of ``--mount``."""
    kind, source, target, readonly = "bind", "", "", False
    options: list[str] = []
    relabel: Any = ""
    for part in text.split(","):
        key, equals, value = part.partition("=")
        if key == "type":
            kind = value
        elif key in ("source", "src"):
            source = value
        elif key in ("target", "dst", "destination"):
            target = value
        elif key in ("readonly", "ro") and value in ("", "true", "1"):
            readonly = True
        elif key in ("readonly", "ro", "rw") and value in ("", "false", "0"):
            readonly = False
        elif key in ("bind-propagation", "propagation") and equals:
            options.append(value)
        elif key == "relabel" and value in ("shared", "private"):
            relabel = value
        elif key == "bind-nonrecursive" and value in ("", "true", "1"):
            options.append("bind")
        elif key in ("tmpfs-size", "size") and equals:
            options.append(f"size={parse_size(value, 'tmpfs size')}")
        elif key in ("tmpfs-mode", "mode") and equals:
            options.append(f"mode={value}")
        elif key in ("noexec", "exec", "nodev", "dev", "nosuid", "suid", "noatime", "idmap", "noidmap") and not equals:
            options.append(key)
        else:
            raise UsageError(f"mount {text!r}: {part!r} is not known", hint="type, source, target, readonly, …")
    if not target:
        raise UsageError(f"mount {text!r} names no target")
    if kind == "bind":
        origin = _source(source, text) if source else ""
        return VolumeMount("bind", target, origin, readonly, tuple(options), relabel=relabel)
    if kind == "tmpfs":
        if source or relabel:
            raise UsageError(f"mount {text!r}: a tmpfs has no source" + (" to relabel" if relabel else ""))
        return VolumeMount("tmpfs", target, "", readonly, tuple(options))
    raise UsageError(f"mount {text!r}: type {kind!r} is not known", hint="there are bind and tmpfs")


def parse_tmpfs(text: str) -> VolumeMount:
    """``/run`` or ``/run:size=64m,mode=755,exec`` of ``--tmpfs``."""
    target, _, words = text.partition(":")
    options = []
    for word in filter(None, words.split(",")):
        key, equals, value = word.partition("=")
        options.append(f"size={parse_size(value, 'tmpfs size')}" if key == "size" and equals else word)
    return VolumeMount("tmpfs", target, options=tuple(options))


def parse_pair(text: str, what: str, *, bare: bool = True) -> tuple[str, str]:
    """``KEY=VALUE``; where ``bare`` is allowed, KEY alone has an empty value."""
    key, equals, value = text.partition("=")
    if not key or not (equals or bare):
        raise UsageError(f"{what} {text!r} should be KEY=VALUE")
    return key, value


def environment(entries: Iterable[str], files: Iterable[str], host: Mapping[str, str]) -> tuple[str, ...]:
    """``-e`` and ``--env-file`` as NAME=VALUE: a bare NAME takes the host's value and is left out if there is none.

    The entries win over the files. A pattern (``NAME*``) is refused: it would hand over more than was meant.
    """
    result = []
    for path in files:
        try:
            text = read_file(path, ENV_FILE_LIMIT).decode()
        except UnicodeDecodeError:
            raise UsageError(f"env file {path} is not UTF-8 text") from None
        for number, line in enumerate(text.splitlines(), 1):
            entry = line.lstrip()
            if entry and not entry.startswith("#"):
                result += _variable(entry, f"{path}, line {number}", host)
    for entry in entries:
        result += _variable(entry, f"environment entry {entry!r}", host)
    return tuple(result)


def _variable(entry: str, where: str, host: Mapping[str, str]) -> list[str]:
    name, equals, _ = entry.partition("=")
    if not name or "*" in name or any(char.isspace() for char in name) or "\0" in entry:
        raise UsageError(f"{where}: {name!r} is not the name of a variable")
    if equals:
        return [entry]
    return [f"{name}={host[name]}"] if name in host else []


def parse_security(entries: Iterable[str]) -> dict[str, Any]:
    """``--security-opt`` texts -> fields of RunOptions (``seccomp``, ``landlock``: paths to read)."""
    found: dict[str, Any] = {}
    for entry in entries:
        key, separator, value = entry.partition("=")
        if not separator:
            key, separator, value = entry.partition(":")
        if key == "no-new-privileges" and value in ("", "true", "false"):
            found["allow_new_privs"] = value == "false"
        elif key == "seccomp" and value:
            found["seccomp"] = value
        elif key == "landlock" and value:
            found["landlock"] = value
        elif key == "apparmor" and value:
            found["apparmor"] = value
        elif key == "label" and value:
            found["selinux"] = (*found.get("selinux", ()), parse_words(value))
        else:
            known = "seccomp=FILE|unconfined, landlock=FILE, no-new-privileges[=true|false], "
            known += "apparmor=PROFILE|unconfined, label=disable|CONTEXT|type:T|level:L|…"
            raise UsageError(f"security option {entry!r} is not known", hint=f"there is {known}")
    return found


def parse_signal(text: str) -> int:
    """A signal's number from ``TERM``, ``SIGTERM``, ``15`` or ``SIGRTMIN+3``. Raises UsageError."""
    try:
        return signal_number(text)
    except ValueError as error:
        raise UsageError(f"signal {error}") from None
