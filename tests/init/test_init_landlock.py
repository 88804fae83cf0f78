"""The init's operations of Landlock; they take no privilege."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest
from initlaunch import Launcher, shell

from knarr.kernel.landlock import landlock_version
from knarr.plan.ops import OPTIONAL, Op

if TYPE_CHECKING:
    from pathlib import Path

VERSION = landlock_version()
needs_landlock = pytest.mark.skipif(VERSION < 3, reason=f"this kernel has Landlock {VERSION or 'not at all'}, not 3")
SLOT, FS = 5, (1 << 15) - 1
READ, EXECUTE, WRITE = 0b1100, 1, 0x43F2
FIRST, LAST = Op("no_new_privs"), Op("landlock_restrict", [SLOT])
CREATE = Op("landlock_create", [SLOT, FS, 0, 0])


def allow(path: object, access: int, flags: int = 0) -> Op:
    return Op("landlock_path", [SLOT, access, flags], [str(path)])


@needs_landlock
def test_rules(launcher: Launcher, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    (tmp_path / "file").write_text("words\n")
    (tmp_path / "other").write_text("others\n")
    (tmp_path / "link").symlink_to("file")
    rules = [allow("/", EXECUTE), allow("/usr", READ), allow("/lib", READ), allow("/lib64", READ, OPTIONAL)]
    rules += [allow("/etc/ld.so.cache", READ, OPTIONAL), allow(tmp_path / "link", READ | WRITE)]
    show = shell(f"cd {tmp_path}; cat file other; echo new >>file; cat file; rm file; true")
    seen = launcher.output([FIRST, CREATE, *rules, LAST, *show])
    assert seen.count("words\n") == 2
    assert "new\n" in seen
    assert seen.count("ermission denied") == 2, seen


@needs_landlock
def test_errors(launcher: Launcher, tmp_path: Path) -> None:
    launcher.run([CREATE, allow(tmp_path / "none", READ)]).refused(1, errno.ENOENT)
    launcher.run([CREATE, allow(tmp_path / "none", READ, OPTIONAL)]).succeeded()
    (tmp_path / "file").touch()
    launcher.run([CREATE, allow(tmp_path / "file", 0b1000)]).refused(1, errno.ENOMSG)
    launcher.run([CREATE, allow("/proc/self/cwd", READ)]).refused(1, errno.ELOOP)
    launcher.run([allow("/", READ)]).refused(0, errno.EBADF)
    launcher.run([FIRST, LAST]).refused(1, errno.EBADF)
    launcher.run([Op("landlock_create", [SLOT, 1 << 60, 0, 0])]).refused(0, errno.EINVAL)
    launcher.run([Op("capabilities", [0, 0, 0, 0]), CREATE, LAST]).refused(2, errno.EPERM)


@pytest.mark.skipif(VERSION < 4, reason="TCP ports take Landlock 4")
def test_ports(launcher: Launcher) -> None:
    create = Op("landlock_create", [SLOT, 0, 3, 0])
    launcher.run([FIRST, create, Op("landlock_port", [SLOT, 2, 443]), LAST]).succeeded()
    launcher.run([create, Op("landlock_port", [SLOT, 2, 65536])]).refused(1, errno.EINVAL)


@pytest.mark.skipif(VERSION > 0, reason="this kernel has Landlock")
def test_a_kernel_without_it(launcher: Launcher) -> None:
    error = launcher.run([CREATE]).error
    assert error is not None
    assert error.value in (errno.ENOSYS, errno.EOPNOTSUPP)
