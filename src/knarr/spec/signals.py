"""Signals by name and number, as config files, images and command lines write them (hot): signal(7).

Numbers are those of x86-64, arm64 and most others; the real-time ones count from 34 to 64, as in every C library a
container brings (glibc and musl keep 32 and 33, musl 34 too, for themselves).
"""

from __future__ import annotations

_NAMES = (
    "HUP INT QUIT ILL TRAP ABRT BUS FPE KILL USR1 SEGV USR2 PIPE ALRM TERM STKFLT CHLD CONT STOP TSTP TTIN TTOU URG "
    "XCPU XFSZ VTALRM PROF WINCH IO PWR SYS"
)

RTMIN, RTMAX = 34, 64
SIGNALS = {f"SIG{name}": number for number, name in enumerate(_NAMES.split(), 1)}
"""Name to number: ``SIGNALS["SIGTERM"] == 15``; without the real-time ones and the second names."""

_ALSO = {"SIGIOT": 6, "SIGCLD": 17, "SIGPOLL": 29, "SIGRTMIN": RTMIN, "SIGRTMAX": RTMAX}


def signal_number(text: str) -> int:
    """Return the number of a signal written as ``SIGTERM``, ``TERM``, ``15``, ``SIGRTMIN+3`` or ``RTMAX-1``.

    Case does not count. Raises ValueError with the reason.
    """
    shown = text if len(text) <= 40 else f"{text[:37]}…"
    if text.isascii() and text.isdigit():
        number = int(text) if len(text) <= 3 else 0
        if not 1 <= number <= RTMAX:
            raise ValueError(f"{shown} is no signal, they go from 1 to {RTMAX}")
        return number
    name = text.upper()
    if not name.startswith("SIG"):
        name = f"SIG{name}"
    known = SIGNALS.get(name) or _ALSO.get(name)
    if known:
        return known
    start, digits = name[:9], name[9:]
    if start in ("SIGRTMIN+", "SIGRTMAX-") and digits.isascii() and digits.isdigit() and len(digits) <= 2:
        number = RTMIN + int(digits) if start == "SIGRTMIN+" else RTMAX - int(digits)
        if RTMIN <= number <= RTMAX:
            return number
    raise ValueError(f"{shown!r} is no signal")
