"""Raw system calls over CPython's own ``_ctypes`` (hot).

``import ctypes`` costs 3 ms, ``_ctypes`` 0.45 ms; this file is the only one that touches it. The GIL
is released during a call. Numbers differ per architecture, so callers name the call.
"""

from __future__ import annotations

import _ctypes
import posix
from errno import EINTR

from knarr.base.errors import KernelError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# name -> number on (x86_64, aarch64); calls born after Linux 5.1 share one number everywhere.
_NUMBERS = {
    "mount": (165, 40),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "setns": (308, 268),
    "keyctl": (250, 219),
    "bpf": (321, 280),
    "openat": (257, 56),
    "prctl": (157, 167),
    "name_to_handle_at": (303, 264),
    "renameat2": (316, 276),
    "syncfs": (306, 267),
    "sync_file_range": (277, 84),
    "sched_setattr": (314, 274),
    "ioprio_set": (251, 30),
    "pidfd_send_signal": (424, 424),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "clone3": (435, 435),
    "openat2": (437, 437),
    "mount_setattr": (442, 442),
    "landlock_create_ruleset": (444, 444),
}

MACHINE = posix.uname().machine
_COLUMN = {"x86_64": 0, "aarch64": 1}.get(MACHINE, 0)


class _Long(_ctypes._SimpleCData):  # type: ignore[type-arg]  # not subscriptable at run time
    _type_ = "l"


class _Int(_ctypes._SimpleCData):  # type: ignore[type-arg]
    _type_ = "i"


class _Pointer(_ctypes._SimpleCData):  # type: ignore[type-arg]
    _type_ = "P"


class _Char(_ctypes._SimpleCData):  # type: ignore[type-arg]
    _type_ = "c"


class _Function(_ctypes.CFuncPtr):
    _flags_ = _ctypes.FUNCFLAG_CDECL | _ctypes.FUNCFLAG_USE_ERRNO
    _restype_ = _Long
    _argtypes_ = (_Long, _Pointer, _Pointer, _Pointer, _Pointer, _Pointer, _Pointer)


class _Numbers(_ctypes.CFuncPtr):
    _flags_ = _ctypes.FUNCFLAG_CDECL
    _restype_ = _Int


# None stands for the running program, which has libc; typeshed wants a name.
_THIS_PROGRAM: Any = None
_libc = _ctypes.dlopen(_THIS_PROGRAM, 0)
_syscall = _Function(_ctypes.dlsym(_libc, "syscall"))


class Buffer:
    """Memory the kernel may write to: ``address`` for the call, ``bytes()`` for what came back."""

    __slots__ = ("_array", "address", "size")

    def __init__(self, data: bytes | int) -> None:
        size = data if isinstance(data, int) else len(data)
        kind = type("_Chars", (_ctypes.Array,), {"_type_": _Char, "_length_": max(size, 1)})
        self._array = kind()
        self.size = size
        if not isinstance(data, int) and size:
            memoryview(self._array).cast("B")[:size] = data
        self.address = _ctypes.addressof(self._array)

    def bytes(self) -> bytes:
        return memoryview(self._array).cast("B")[: self.size].tobytes()


def syscall(name: str, *arguments: int | bytes | None, operand: str = "") -> int:
    """Make the call; pointers may be bytes (read-only, NUL-ended by CPython), an address or None.

    Raises KernelError with the call's name and ``operand``; restarts on EINTR.
    """
    padded = arguments + (0,) * (6 - len(arguments))
    number = _NUMBERS[name][_COLUMN]
    while True:
        _ctypes.set_errno(0)
        result: int = _syscall(number, *padded)
        if result != -1:
            return result
        error = _ctypes.get_errno()
        if error != EINTR:
            raise KernelError(name, operand, error)


def library_call(name: str, *arguments: int) -> int:
    """Call a function of the C library that takes and returns whole numbers; 0 where this C library has none such."""
    try:
        function = _Numbers(_ctypes.dlsym(_libc, name))
    except OSError:
        return 0
    result: int = function(*arguments)
    return result
