"""Terminals: raw mode, size, receiving a master (hot; termios is loaded where used).

termios(3), ioctl_tty(2), unix(7) SCM_RIGHTS.
"""

from __future__ import annotations

import posix
from _socket import CMSG_SPACE, MSG_CMSG_CLOEXEC, socket
from fcntl import ioctl

from knarr.kernel.passed import descriptors

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

TIOCGWINSZ, TIOCSWINSZ = 0x5413, 0x5414


def make_raw(fd: int) -> list[Any] | None:
    """Put a terminal into raw mode (cfmakeraw(3)); its old settings for ``restore``, None when it is no terminal."""
    import termios  # cold: only for an interactive container

    try:
        old = termios.tcgetattr(fd)
    except termios.error:
        return None
    raw = termios.tcgetattr(fd)
    raw[0] &= ~(
        termios.IGNBRK
        | termios.BRKINT
        | termios.PARMRK
        | termios.ISTRIP
        | termios.INLCR
        | termios.IGNCR
        | termios.ICRNL
        | termios.IXON
    )
    raw[1] &= ~termios.OPOST
    raw[2] = (raw[2] & ~(termios.CSIZE | termios.PARENB)) | termios.CS8
    raw[3] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
    raw[6][termios.VMIN], raw[6][termios.VTIME] = 1, 0
    termios.tcsetattr(fd, termios.TCSANOW, raw)
    return old


def restore(fd: int, settings: list[Any]) -> None:
    """Put back what ``make_raw`` returned; a terminal that is gone is fine."""
    import termios  # cold: only for an interactive container

    try:
        termios.tcsetattr(fd, termios.TCSADRAIN, settings)
    except termios.error:
        pass


def window_size(fd: int) -> bytes | None:
    """The struct winsize of a terminal, None when it is none."""
    try:
        return ioctl(fd, TIOCGWINSZ, bytes(8))
    except OSError:
        return None


def resize(master: int, size: bytes) -> None:
    """Give a terminal a struct winsize; its foreground process group gets SIGWINCH. Raises OSError."""
    ioctl(master, TIOCSWINSZ, size)


def receive_fd(sock: socket) -> int:
    """Take one descriptor (close-on-exec) from a socket; -1 when the message brought none. Raises OSError."""
    _, ancillary, _, _ = sock.recvmsg(4096, CMSG_SPACE(4 * 4), MSG_CMSG_CLOEXEC)
    found = descriptors(ancillary)
    for fd in found[1:]:
        posix.close(fd)
    return found[0] if found else -1
