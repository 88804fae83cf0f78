"""The init's mounts: each kind with its real effect, and what must be refused (I1, I2, I3, I21)."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from pathlib import Path

import pytest
from initlaunch import (
    MS_PRIVATE,
    MS_REC,
    MS_SHARED,
    MS_SLAVE,
    NEWNET,
    NEWPID,
    NODEV,
    NOEXEC,
    NOSUID,
    RDONLY,
    ROOT,
    ROOT_ONLY,
    Launcher,
    Run,
    fenced,
    rooted,
    shell,
)

from knarr.plan.ops import (
    CREATE_DIR,
    CREATE_FILE,
    CREATE_LIKE_SOURCE,
    NO_SLOT,
    OPTIONAL,
    OVER_PROC,
    PIVOT_MOVE,
    RECURSIVE,
    SOURCE_IS_TREE,
    Op,
)

pytestmark = pytest.mark.usefixtures("namespaces")

MS_BIND = 4096
BUSYBOX = shutil.which("busybox")


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    made = tmp_path / "rootfs"
    made.mkdir()
    return made


def mount(target: str, fstype: str = "tmpfs", *options: str, attr: int = 0, flags: int = CREATE_DIR, to: int = 0) -> Op:
    return Op("mount", [ROOT, attr, to, flags], [fstype, f"src-{fstype}", target, *options])


def bind(
    source: str | Path,
    target: str,
    flags: int = CREATE_LIKE_SOURCE,
    *,
    slot: int = NO_SLOT,
    attr: tuple[int, int, int, int] = (0, 0, 0, 0),
    to: int = 0,
) -> Op:
    return Op("bind", [ROOT, slot, flags, *attr, to], [str(source), target])


def paused(launcher: Launcher, root: Path, *ops: Op, flags: int = 0) -> Run:
    return launcher.start(rooted(root, *ops, flags=flags)).stop()


def refused(launcher: Launcher, root: Path, *ops: Op, error: int, flags: int = 0) -> bytes:
    """The last of the operations must be refused; gives the detail."""
    plan = rooted(root, *ops, flags=flags)
    return launcher.start(plan).finish().refused(len(plan) - 2, error).detail


# -- the root -----------------------------------------------------------------------------------------------------


def test_bind_root_is_a_mount_of_its_own(launcher: Launcher, rootfs: Path) -> None:
    run = paused(launcher, rootfs)
    assert str(rootfs) in run.mounts
    assert str(rootfs) not in Path("/proc/self/mountinfo").read_text()


def test_bind_root_below_a_shared_mount(launcher: Launcher, rootfs: Path) -> None:
    """What is mounted in the root is seen nowhere else, and pivot_root accepts it."""
    plan = fenced(
        Op("propagation", [MS_SHARED | MS_REC], ["/"]),
        Op("bind_root", [ROOT], [str(rootfs)]),
        mount("/t"),
        Op("pivot", [ROOT, 0]),
        Op("sync", [7]),
    )
    run = launcher.start(plan).stop(7)
    assert set(run.mounts) == {"/", "/t"}
    run.go()
    run.finish().succeeded()


def test_bind_root_refuses_a_link(launcher: Launcher, rootfs: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(rootfs)
    (tmp_path / "file").touch()
    for name, error in (("link", errno.ENOTDIR), ("file", errno.ENOTDIR), ("none", errno.ENOENT)):
        for kind in ("bind_root", "open_root"):
            plan = fenced(Op(kind, [ROOT], [str(tmp_path / name)]))
            launcher.run(plan).refused(len(plan) - 1, error)


def test_open_root(launcher: Launcher, rootfs: Path) -> None:
    plan = fenced(Op("open_root", [ROOT], [str(rootfs)]), Op("mkdir", [ROOT, 0o755], ["/../made"]))
    launcher.run(plan).succeeded()
    assert (rootfs / "made").is_dir()


def test_host_paths(launcher: Launcher, tmp_path: Path) -> None:
    """The overlay of a root: tmpfs, upper and work on it, relative lower directories."""
    for name in ("lowers", "root"):
        (tmp_path / name).mkdir()
    for name in ("a", "b"):
        (tmp_path / "lowers" / name).mkdir()
        (tmp_path / "lowers" / name / f"from-{name}").touch()
    scratch = tmp_path / "root"
    plan = fenced(
        Op("host_mount", [NOSUID | NODEV], ["tmpfs", str(scratch), "tmpfs", "mode=700"]),
        Op("host_mkdir", [0o750, 0, 0], [f"{scratch}/upper"]),
        Op("host_mkdir", [0o700, 0, 0], [f"{scratch}/upper"]),
        Op("host_mkdir", [0o700, 0, 0], [f"{scratch}/work"]),
        Op("host_chdir", [], [str(tmp_path / "lowers")]),
        Op(
            "host_mount",
            [0],
            [
                "overlay",
                str(scratch),
                "overlay",
                f"lowerdir=a:b,upperdir={scratch}/upper,workdir={scratch}/work,userxattr",
            ],
        ),
        Op("open_root", [ROOT], [str(scratch)]),
        Op("mkdir", [ROOT, 0o755], ["/new"]),
        Op("sync", [7]),
    )
    run = launcher.start(plan).stop(7)
    inside = run.root / str(scratch)[1:]
    assert set(os.listdir(inside)) == {"from-a", "from-b", "new"}
    assert stat.S_IMODE(inside.stat().st_mode) == 0o750
    assert os.listdir(scratch) == []
    run.go()
    run.finish().succeeded()
    missing = fenced(Op("host_chdir", [], [str(tmp_path / "none")]))
    launcher.run(missing).refused(len(missing) - 1, errno.ENOENT)


def test_propagation(launcher: Launcher, rootfs: Path) -> None:
    run = paused(launcher, rootfs, Op("propagation", [MS_SHARED], [str(rootfs)]))
    assert "shared:" in run.mounts[str(rootfs)]


# -- mount --------------------------------------------------------------------------------------------------------


def test_mount_with_options_and_attributes(launcher: Launcher, rootfs: Path) -> None:
    options = ("mode=1770", "size=65536k", "nr_inodes=100")
    run = paused(launcher, rootfs, mount("/a/t", "tmpfs", *options, attr=NOSUID | NODEV | NOEXEC | 0x10))
    line = run.mounts[f"{rootfs}/a/t"]
    before, after = line.split(" - ")
    assert before.split()[0] == "rw,nosuid,nodev,noexec,noatime"
    assert after.split()[:2] == ["tmpfs", "src-tmpfs"]
    assert {"size=65536k", "nr_inodes=100", "mode=1770"} <= set(after.split()[2].split(","))
    assert stat.S_IMODE((run.root / str(rootfs)[1:] / "a/t").stat().st_mode) == 0o1770
    assert stat.S_IMODE((rootfs / "a/t").stat().st_mode) == 0o755


def test_mount_flag_option_and_propagation(launcher: Launcher, rootfs: Path) -> None:
    run = paused(launcher, rootfs, mount("/t", "tmpfs", "ro", to=MS_SHARED), mount("/u", attr=RDONLY))
    before, after = run.mounts[f"{rootfs}/t"].split(" - ")
    assert "shared:" in before
    assert after.split()[2].startswith("ro")
    before, after = run.mounts[f"{rootfs}/u"].split(" - ")
    assert before.split()[0].startswith("ro")
    assert after.split()[2].startswith("rw")


def test_the_file_systems_of_a_container(launcher: Launcher, rootfs: Path) -> None:
    ops = [
        mount("/proc", "proc", attr=NOSUID | NODEV | NOEXEC),
        mount("/dev", "tmpfs", "mode=755"),
        mount("/dev/pts", "devpts", "newinstance", "ptmxmode=0666", "mode=0620"),
        mount("/dev/shm", "tmpfs", "mode=1777"),
        mount("/dev/mqueue", "mqueue"),
        mount("/sys", "sysfs", attr=RDONLY),
    ]
    run = paused(launcher, rootfs, *ops, flags=NEWPID | NEWNET | 0x8000000)
    for place in ("/proc", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue", "/sys"):
        assert f"{rootfs}{place}" in run.mounts
    assert os.listdir(run.root / str(rootfs)[1:] / "dev/pts") == ["ptmx"]
    assert (run.root / str(rootfs)[1:] / "proc/1/status").exists()


def test_what_the_kernel_says_of_an_option(launcher: Launcher, rootfs: Path) -> None:
    detail = refused(launcher, rootfs, mount("/t", "tmpfs", "size=1m", "colour=blue"), error=errno.EINVAL)
    assert b"colour" in detail
    refused(launcher, rootfs, mount("/t", "tmpfs", "size=much"), error=errno.EINVAL)
    refused(launcher, rootfs, mount("/t", "nosuchfs"), error=errno.ENODEV)
    refused(launcher, rootfs, mount("/t", "tmpfs", "k" * 200 + "=v"), error=errno.EINVAL)
    refused(launcher, rootfs, mount("/none", flags=0), error=errno.ENOENT)


def test_an_option_that_fsconfig_cannot_take(launcher: Launcher, rootfs: Path, tmp_path: Path) -> None:
    lowers = []
    for number in range(4):
        lower = tmp_path / f"{number}{'l' * 100}"
        lower.mkdir()
        (lower / f"f{number}").touch()
        lowers.append(str(lower))
    option = "lowerdir=" + ":".join(lowers)
    assert 255 < len(option) < 4000
    run = paused(
        launcher, rootfs, mount("/m", "overlay", option, "userxattr", attr=NOSUID | NODEV | 0x10, to=MS_SHARED)
    )
    assert set(os.listdir(run.root / str(rootfs)[1:] / "m")) == {"f0", "f1", "f2", "f3"}
    before = run.mounts[f"{rootfs}/m"].split(" - ")[0]
    assert before.startswith(("ro,nosuid,nodev,noatime shared:", "rw,nosuid,nodev,noatime shared:"))
    refused(launcher, rootfs, mount("/m", "overlay", "x=" + "y" * 5000), error=errno.E2BIG)


def test_cwd_is_the_same_after_a_long_option(launcher: Launcher, rootfs: Path, tmp_path: Path) -> None:
    (tmp_path / "lower").mkdir()
    (tmp_path / "other").mkdir()
    option = f"lowerdir={tmp_path}/" + "./" * 200 + f"lower:{tmp_path}/other"
    ops = [Op("host_chdir", [], [str(tmp_path)]), mount("/m", "overlay", option, "userxattr")]
    run = paused(launcher, rootfs, *ops)
    assert os.readlink(f"/proc/{run.process}/cwd") == str(tmp_path)


@pytest.mark.parametrize("fstype", ["proc", "sysfs"])
@pytest.mark.parametrize("form", ["last", "parent", "dangling", "file"])
def test_proc_and_sys_only_on_real_directories(launcher: Launcher, rootfs: Path, fstype: str, form: str) -> None:
    """CVE-2019-16884, CVE-2019-19921, CVE-2023-27561, CVE-2023-28642."""
    target = "/a/x"
    (rootfs / "real/x").mkdir(parents=True)
    if form == "parent":
        (rootfs / "a").symlink_to("real")
    else:
        (rootfs / "a").mkdir()
    if form in {"last", "dangling"}:
        (rootfs / "a/x").symlink_to("/real/x" if form == "last" else "/nowhere")
    if form == "file":
        (rootfs / "a/x").touch()
    refused(launcher, rootfs, mount(target, fstype), error=errno.ENOTDIR, flags=NEWPID | NEWNET)
    assert not (rootfs / "nowhere").exists()
    paused(launcher, rootfs, mount(target if form == "none" else "/b/c", fstype), flags=NEWPID | NEWNET)


def test_mount_on_a_file(launcher: Launcher, rootfs: Path) -> None:
    (rootfs / "file").touch()
    refused(launcher, rootfs, mount("/file"), error=errno.ENOTDIR)
    refused(launcher, rootfs, bind("/etc/passwd", "/"), error=errno.ENOTDIR)


# -- bind ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path: Path) -> Path:
    made = tmp_path / "source"
    (made / "sub").mkdir(parents=True)
    (made / "file").write_text("from the source")
    return made


def test_bind_makes_the_target_like_the_source(launcher: Launcher, rootfs: Path, source: Path) -> None:
    run = paused(launcher, rootfs, bind(source, "/a/d"), bind(source / "file", "/a/f"))
    inside = run.root / str(rootfs)[1:]
    assert set(os.listdir(inside / "a/d")) == {"sub", "file"}
    assert (inside / "a/f").read_text() == "from the source"
    assert (rootfs / "a/f").read_bytes() == b""
    assert stat.S_IMODE((rootfs / "a/f").stat().st_mode) == 0o644


def test_bind_of_a_device_a_fifo_and_a_link(launcher: Launcher, rootfs: Path, source: Path) -> None:
    os.mkfifo(source / "fifo")
    (source / "link").symlink_to("file")
    run = paused(launcher, rootfs, bind("/dev/zero", "/z"), bind(source / "fifo", "/p"), bind(source / "link", "/l"))
    inside = run.root / str(rootfs)[1:]
    assert (inside / "z").stat().st_rdev == os.makedev(1, 5)
    assert stat.S_ISFIFO((inside / "p").stat().st_mode)
    assert (inside / "l").read_text() == "from the source"


def test_bind_recursive_or_not(launcher: Launcher, rootfs: Path, source: Path) -> None:
    over = Op("host_mount", [0], ["tmpfs", f"{source}/sub", "tmpfs", ""])
    run = paused(launcher, rootfs, over, bind(source, "/r", CREATE_DIR | RECURSIVE), bind(source, "/o", CREATE_DIR))
    assert f"{rootfs}/r/sub" in run.mounts
    assert f"{rootfs}/o/sub" not in run.mounts


def test_bind_attributes_on_the_top_and_below(launcher: Launcher, rootfs: Path, source: Path) -> None:
    over = Op("host_mount", [0], ["tmpfs", f"{source}/sub", "tmpfs", ""])
    flags = CREATE_DIR | RECURSIVE
    run = paused(
        launcher,
        rootfs,
        over,
        bind(source, "/top", flags, attr=(RDONLY | NOEXEC, 0, 0, 0)),
        bind(source, "/all", flags, attr=(0, 0, RDONLY | NODEV, 0)),
        bind(source, "/both", flags, attr=(RDONLY, 0, NOSUID, 0), to=MS_SLAVE | MS_REC),
    )

    def of(place: str) -> set[str]:
        return set(run.mounts[f"{rootfs}{place}"].split()[0].split(","))

    assert {"ro", "noexec"} <= of("/top")
    assert {"ro", "noexec"} & of("/top/sub") == set()
    assert {"ro", "nodev"} <= of("/all") & of("/all/sub")
    assert {"ro", "nosuid"} <= of("/both")
    assert "nosuid" in of("/both/sub")
    assert "ro" not in of("/both/sub")
    with pytest.raises(OSError, match="Read-only"):
        (run.root / str(rootfs)[1:] / "all/new").touch()


def test_bind_propagation(launcher: Launcher, rootfs: Path, source: Path) -> None:
    ops = [bind(source, "/s", to=MS_SHARED), bind(source, "/p", to=MS_PRIVATE | MS_REC)]
    run = paused(launcher, rootfs, *ops)
    assert "shared:" in run.mounts[f"{rootfs}/s"]
    assert "shared:" not in run.mounts[f"{rootfs}/p"]


def test_bind_optional_and_missing(launcher: Launcher, rootfs: Path, source: Path) -> None:
    refused(launcher, rootfs, bind(source / "none", "/a"), error=errno.ENOENT)
    refused(launcher, rootfs, bind(source, "/a", 0), error=errno.ENOENT)
    paused(launcher, rootfs, bind(source / "none", "/a", CREATE_LIKE_SOURCE | OPTIONAL))
    assert os.listdir(rootfs) == []
    refused(launcher, rootfs, bind(source, "/f", CREATE_FILE), error=errno.ENOTDIR)
    refused(launcher, rootfs, bind("", "/f", SOURCE_IS_TREE, slot=40), error=errno.EBADF)


def test_bind_from_a_slot(launcher: Launcher, rootfs: Path, source: Path) -> None:
    (source / "out").symlink_to("/etc/passwd")
    (source / "etc").mkdir()
    (source / "etc/passwd").write_text("of the source")
    opened = Op("open_root", [30], [str(source)])
    run = paused(launcher, rootfs, opened, bind("", "/whole", slot=30), bind("/../out", "/part", slot=30))
    inside = run.root / str(rootfs)[1:]
    assert (inside / "whole/file").exists()
    assert (inside / "part").read_text() == "of the source"  # a slot's paths are resolved in it


def test_open_source_moves_a_tree(launcher: Launcher, rootfs: Path, source: Path) -> None:
    plan = rooted(
        rootfs,
        bind("", "/a", CREATE_LIKE_SOURCE | SOURCE_IS_TREE, slot=30, attr=(RDONLY, 0, 0, 0)),
        bind("", "/f", CREATE_LIKE_SOURCE | SOURCE_IS_TREE, slot=31),
    )
    opens = [Op("open_source", [30, RECURSIVE], [str(source)]), Op("open_source", [31, 0], [str(source / "file")])]
    if os.geteuid() != 0:  # an ordinary user can clone mounts only once in the own namespace
        position = next(n for n, op in enumerate(plan) if op.kind == "propagation")
        plan = plan[:position] + opens + plan[position:]
    else:
        plan = opens + plan
    run = launcher.start(plan).stop()
    inside = run.root / str(rootfs)[1:]
    assert (inside / "f").read_text() == "from the source"
    assert set(os.listdir(inside / "a")) == {"file", "sub"}
    assert run.mounts[f"{rootfs}/a"].startswith("ro,")
    again = [*plan[:-1], bind("", "/b", SOURCE_IS_TREE, slot=30)]  # it is gone
    launcher.start(again).finish().refused(len(again) - 1, errno.EBADF)


def test_remount(launcher: Launcher, rootfs: Path) -> None:
    over = mount("/t")
    run = paused(
        launcher,
        rootfs,
        over,
        mount("/t/u"),
        Op("remount", [ROOT, 0, RDONLY | NOSUID, 0], ["/t"]),
        Op("remount", [ROOT, RECURSIVE, NODEV, NOSUID], ["/t"]),
        Op("remount", [ROOT, OPTIONAL, RDONLY, 0], ["/none"]),
        Op("remount", [ROOT, 0, RDONLY, 0], ["/"]),
    )
    assert run.mounts[f"{rootfs}/t"].startswith("ro,nodev,")
    assert run.mounts[f"{rootfs}/t/u"].startswith("rw,nodev,")
    assert run.mounts[str(rootfs)].startswith("ro,")
    refused(launcher, rootfs, Op("remount", [ROOT, 0, RDONLY, 0], ["/none"]), error=errno.ENOENT)
    (rootfs / "plain").mkdir()
    refused(launcher, rootfs, Op("remount", [ROOT, 0, RDONLY, 0], ["/plain"]), error=errno.EINVAL)


def test_unmount(launcher: Launcher, rootfs: Path, tmp_path: Path) -> None:
    """The uppermost mount, of a directory or a file, and never through a link."""
    (rootfs / "link").symlink_to("t")
    (tmp_path / "file").touch()
    run = paused(
        launcher,
        rootfs,
        mount("/t"),
        mount("/u"),
        mount("/u"),
        Op("bind", [ROOT, NO_SLOT, CREATE_LIKE_SOURCE, 0, 0, 0, 0, 0], [str(tmp_path / "file"), "/f"]),
        Op("unmount", [ROOT], ["/u"]),
        Op("unmount", [ROOT], ["/f"]),
    )
    assert f"{rootfs}/t" in run.mounts
    assert f"{rootfs}/u" in run.mounts
    assert f"{rootfs}/f" not in run.mounts
    refused(launcher, rootfs, Op("unmount", [ROOT], ["/link"]), error=errno.EINVAL)
    refused(launcher, rootfs, Op("unmount", [ROOT], ["/none"]), error=errno.ENOENT)
    refused(launcher, rootfs, Op("unmount", [ROOT], ["/none/deeper"]), error=errno.ENOENT)
    assert not (rootfs / "none").exists()
    refused(launcher, rootfs, Op("unmount", [ROOT], ["/"]), error=errno.EINVAL)
    refused(launcher, rootfs, Op("unmount", [ROOT], ["/t/.."]), error=errno.EINVAL)


# -- masked and read-only -----------------------------------------------------------------------------------------


def mask(path: str) -> Op:
    return Op("mask", [ROOT], [path])


def test_mask(launcher: Launcher, rootfs: Path) -> None:
    (rootfs / "secret").write_text("secret")
    (rootfs / "dir").mkdir()
    (rootfs / "dir/secret").write_text("secret")
    (rootfs / "other").mkdir()
    (rootfs / "link").symlink_to("/secret2")
    (rootfs / "secret2").write_text("secret")
    places = ["/secret", "/dir", "/other", "/none", "/secret/below", "/link"]
    run = paused(launcher, rootfs, *map(mask, places))
    inside = run.root / str(rootfs)[1:]
    for name in ("secret", "secret2"):
        assert (inside / name).read_bytes() == b""
        assert (inside / name).stat().st_rdev == os.makedev(1, 3)
        (inside / name).write_text("goes nowhere")
        with pytest.raises(OSError, match="Read-only"):
            (inside / name).chmod(0o777)  # else root in the container could change the host's /dev/null
    for name in ("dir", "other"):
        assert os.listdir(inside / name) == []
        with pytest.raises(OSError, match="Read-only"):
            (inside / name / "new").touch()
    assert stat.S_IMODE(Path("/dev/null").stat().st_mode) == 0o666
    assert (rootfs / "secret").read_text() == "secret"


@ROOT_ONLY
def test_the_options_of_a_mask(launcher: Launcher, rootfs: Path) -> None:
    for name in ("a", "b"):
        (rootfs / name).mkdir()
    run = paused(launcher, rootfs, *(Op("mask", [ROOT], [f"/{name}", "size=64k", "mode=711"]) for name in "ab"))
    for name in ("a", "b"):
        options = run.mounts[f"{rootfs}/{name}"].split(" - ")[1].split()[2].split(",")
        assert {"ro", "size=64k", "mode=711"} <= set(options)
    detail = refused(launcher, rootfs, Op("mask", [ROOT], ["/a", "colour=blue"]), error=errno.EINVAL)
    assert b"colour" in detail


def test_mask_with_a_link_that_leads_out(launcher: Launcher, rootfs: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("outside")
    (rootfs / "out").symlink_to(tmp_path / "file")
    (rootfs / "loop").symlink_to("loop")
    run = paused(launcher, rootfs, mask("/out"))
    assert (run.root / str(tmp_path)[1:] / "file").read_text() == "outside"
    refused(launcher, rootfs, mask("/loop"), error=errno.ELOOP)


@pytest.mark.parametrize("kind", ["link", "file", "device", "fifo"])
def test_mask_with_a_fake_null(launcher: Launcher, rootfs: Path, tmp_path: Path, kind: str) -> None:
    """CVE-2025-31133: what stands at /dev/null is looked at, not believed."""
    fake = tmp_path / "dev"
    fake.mkdir()
    if kind == "link":
        (fake / "null").symlink_to("/proc/version")
    elif kind == "fifo":
        os.mkfifo(fake / "null")
    else:
        (fake / "null").touch()
    ops = [Op("host_mount", [MS_BIND | MS_REC], [str(fake), "/dev", "", ""])]
    if kind == "device":
        zero = tmp_path / "zero"
        zero.touch()
        ops.insert(0, Op("host_mount", [MS_BIND], ["/dev/zero", str(zero), "", ""]))
        ops.append(Op("host_mount", [MS_BIND], [str(zero), "/dev/null", "", ""]))
    (rootfs / "secret").write_text("secret")
    refused(launcher, rootfs, *ops, mask("/secret"), error=errno.ENODEV)


def test_readonly(launcher: Launcher, rootfs: Path) -> None:
    (rootfs / "a/b").mkdir(parents=True)
    (rootfs / "file").touch()
    (rootfs / "link").symlink_to("/a")
    ops = [mount("/a/b"), *(Op("readonly", [ROOT], [path]) for path in ("/link", "/file", "/none", "/file/x"))]
    run = paused(launcher, rootfs, *ops)
    inside = run.root / str(rootfs)[1:]
    for path in (inside / "a/new", inside / "a/b/new", inside / "file"):
        with pytest.raises(OSError, match="Read-only"):
            path.touch()
    (inside / "still-writable").touch()


# -- pivot --------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(BUSYBOX is None, reason="busybox is not installed")
@pytest.mark.parametrize("flags", [0, PIVOT_MOVE])
def test_pivot(launcher: Launcher, rootfs: Path, flags: int) -> None:
    assert BUSYBOX is not None
    (rootfs / "bin").mkdir()
    shutil.copy(BUSYBOX, rootfs / "bin/sh")
    plan = fenced(
        Op("bind_root", [ROOT], [str(rootfs)]),
        mount("/proc", "proc"),
        Op("pivot", [ROOT, flags]),
        Op("find_program", [], ["sh", "/bin"]),
        Op("exec", [3], ["sh", "-c", "pwd; echo /*; cat /proc/self/mountinfo; cat /proc/1/status"]),
        flags=NEWPID,
    )
    lines = launcher.output(plan).splitlines()
    assert lines[0] == "/"
    assert lines[1] == "/bin /proc"
    points = [line.split()[4] for line in lines if " - " in line]
    if flags == 0:
        assert points == ["/", "/proc"]
    else:
        assert points.count("/proc") == 1  # mounts left below are not reachable


def test_pivot_leaves_the_host_alone(launcher: Launcher, rootfs: Path) -> None:
    def ours() -> list[str]:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        return [line for line in lines if line.split()[4] in {"/", "/proc", "/dev"} or str(rootfs) in line]

    before = ours()
    assert before
    plan = fenced(
        Op("propagation", [MS_SLAVE | MS_REC], ["/"]), Op("bind_root", [ROOT], [str(rootfs)]), Op("pivot", [ROOT, 0])
    )
    launcher.run(plan).succeeded()
    assert ours() == before


def test_pivot_to_what_is_no_mount(launcher: Launcher, rootfs: Path) -> None:
    plan = fenced(Op("open_root", [ROOT], [str(rootfs)]), Op("pivot", [ROOT, 0]))
    error = launcher.run(plan).error
    assert error is not None
    assert (error.index, error.value in {errno.EINVAL, errno.EBUSY}) == (len(plan) - 1, True)
    plan = fenced(Op("pivot", [ROOT, 0]))
    launcher.run(plan).refused(len(plan) - 1, errno.EBADF)


@ROOT_ONLY
def test_everything_is_gone_with_the_process(launcher: Launcher, rootfs: Path) -> None:
    run = paused(launcher, rootfs, mount("/t"), mount("/u"))
    run.go()
    run.finish().succeeded()
    shutil.rmtree(rootfs)


def test_the_shell_of_the_tests_works(launcher: Launcher) -> None:
    assert launcher.output(fenced(*shell("echo yes"))) == "yes\n"


@pytest.mark.parametrize("target", ["/proc/sys", "/link/sys", "/proc"])
def test_nothing_lies_over_proc_unless_the_plan_says_so(launcher: Launcher, rootfs: Path, target: str) -> None:
    (rootfs / "link").symlink_to("proc")
    procfs = mount("/proc", "proc")
    for over in (mount(target), bind(rootfs, target)):
        error = next(
            p for p in launcher.start(rooted(rootfs, procfs, over, flags=NEWPID)).finish().packets if p.type == 3
        )
        assert error.value == errno.EPERM
    assert paused(launcher, rootfs, procfs, mount(target, flags=CREATE_DIR | OVER_PROC), flags=NEWPID).child


@ROOT_ONLY
def test_a_label_is_an_attribute_of_what_is_there(launcher: Launcher, tmp_path: Path) -> None:
    if Path("/sys/fs/selinux/enforce").exists():
        pytest.skip("a kernel with SELinux knows which labels there are")
    rootfs = tmp_path / "rootfs"
    (rootfs / "data").mkdir(parents=True)
    mount = Op("mount", [ROOT, 0, 0, CREATE_DIR], ["tmpfs", "tmpfs", "/data"])
    label = "system_u:object_r:container_file_t:s0:c1,c2"
    run = launcher.start(rooted(rootfs, mount, Op("label", [ROOT, 0], ["/data", label]))).stop()
    path = f"/proc/{run.process}/root{rootfs}/data"
    assert os.getxattr(path, "security.selinux") == label.encode()
    run.go()
    run.finish().succeeded()
