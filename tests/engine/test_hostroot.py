"""What ``host:`` hides, as a pure question; that it is hidden is seen from inside."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from knarr.base.errors import UsageError
from knarr.engine import hostroot
from knarr.engine.paths import Places

if TYPE_CHECKING:
    from pathlib import Path

    import enginekit


def test_the_list() -> None:
    hide = hostroot.hidden()
    assert {"/home", "/root", "/run", "/tmp"} & set(hide.empty) == {
        path for path in ("/home", "/root", "/run", "/tmp") if os.path.isdir(path) and not os.path.islink(path)
    }
    assert {"/etc/shadow", "/etc/ssl/private", "/etc/krb5.keytab", "/etc/sudoers"} <= set(hide.gone)
    for one in (*hide.empty, *hide.gone):  # none below another: it would be made for nothing
        assert not any(one.startswith(f"{other}/") for other in (*hide.empty, *hide.gone))


def test_what_others_may_not_read_is_hidden(tmp_path: Path) -> None:
    (tmp_path / "open").write_text("")
    (tmp_path / "secret").write_text("")
    (tmp_path / "secret").chmod(0o640)
    (tmp_path / "closed").mkdir(mode=0o750)
    (tmp_path / "closed/inner").write_text("")
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir").chmod(0o755)
    (tmp_path / "dir/key").write_text("")
    (tmp_path / "dir/key").chmod(0o600)
    (tmp_path / "link").symlink_to("secret")
    (tmp_path / "open").chmod(0o644)
    found: set[str] = set()
    hostroot._unreadable(str(tmp_path), found)
    assert found == {f"{tmp_path}/secret", f"{tmp_path}/closed", f"{tmp_path}/dir/key"}


def test_show() -> None:
    assert "/home" not in hostroot.hidden(("/home",)).empty
    assert "/etc/shadow" not in hostroot.hidden(("/etc/shadow",)).gone
    for path in ("/usr", "/etc/hosts"):
        with pytest.raises(UsageError, match="not hidden"):
            hostroot.hidden((path,), walk=False)
    with pytest.raises(UsageError, match="as a whole"):
        hostroot.hidden(("/home/me/src",))
    with pytest.raises(UsageError, match="absolute"):
        hostroot.hidden(("home",))
    with pytest.raises(UsageError, match=r"\.\."):
        hostroot.hidden(("/usr/../home",))


def test_the_layer(tmp_path: Path) -> None:
    where = Places(str(tmp_path / "store"), str(tmp_path / "run"))
    os.mkdir(where.store, 0o700)
    layers = hostroot.hiding_layers(where, (), rootless=True)
    empty, gone = layers
    for hidden in ("etc/shadow", "root", "var/tmp"):
        whiteout = os.lstat(f"{gone}/{hidden}")
        assert stat.S_ISCHR(whiteout.st_mode)
        assert whiteout.st_rdev == 0
    assert os.listdir(f"{empty}/root") == []
    assert stat.S_IMODE(os.stat(f"{empty}/var/tmp").st_mode) == 0o1777
    for layer in layers:
        assert stat.S_IMODE(os.stat("/etc").st_mode) == stat.S_IMODE(os.stat(f"{layer}/etc").st_mode)
    assert hostroot.hiding_layers(where, (), rootless=True) == layers
    assert hostroot.hiding_layers(where, ("/home",), rootless=True) != layers


def test_pieces_leave_out_mounts_and_the_store(tmp_path: Path) -> None:
    where = Places("/usr/share/knarr-test-store", str(tmp_path))
    pieces = hostroot.parts(where, hostroot.hidden(walk=False))
    kinds = {piece.path: piece.kind for piece in pieces}
    assert kinds["/usr"] == kinds["/usr/share"] == "directory"  # made anew, because the store lies below
    assert kinds["/usr/lib"] == "overlay" or "/usr/lib" in hostroot.mounted_below()
    assert not {"/proc", "/sys", "/dev"} & set(kinds)
    for piece in pieces:
        if piece.kind == "overlay":
            assert not any(mount.startswith(f"{piece.path}/") for mount in hostroot.mounted_below())


def test_hidden_from_inside(person: enginekit.Person) -> None:
    # Secrets of the machine that a root of a container could otherwise read.
    files = [
        path for path in ("/etc/shadow", "/etc/gshadow", "/etc/sudoers", "/etc/machine-id") if os.path.exists(path)
    ]
    script = "for f in " + " ".join(files) + "; do test -e $f && echo seen $f; done; "
    script += (
        "ls -A /home /root /run /srv /var/log /tmp; ls /var/lib; "
        # An ordinary user's container may see names of what it cannot read.
        "find /etc -type f ! -perm -o=r 2>/dev/null | while read f; do cat $f >/dev/null 2>&1 && echo read $f; done; true"
    )
    done = person.knarr("run", "host:", "--", "/bin/sh", "-c", script)
    assert done.returncode == 0, done.stderr.decode()
    text = done.stdout.decode()
    assert "seen" not in text
    assert "read" not in text
    kept = {line for line in text.splitlines() if line and not line.endswith(":")}
    assert kept <= hostroot.KEPT_IN_VAR_LIB


def test_writes_do_not_reach_the_host(person: enginekit.Person) -> None:
    script = "echo x > /etc/hosts; rm -rf /usr/share/doc; echo y > /knarr-test; mkdir -p /usr/knarr-test; echo done"
    before = os.stat("/etc/hosts").st_mtime_ns if os.path.exists("/etc/hosts") else None
    done = person.knarr("run", "host:", "--", "/bin/sh", "-c", script)
    assert done.stdout == b"done\n", done.stderr.decode()
    assert before is None or os.stat("/etc/hosts").st_mtime_ns == before
    assert not os.path.exists("/knarr-test")
    assert not os.path.exists("/usr/knarr-test")
