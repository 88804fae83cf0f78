"""The init's in-root paths (I1): what is made, where symbolic links lead, what a hostile rename can do."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from typing import TYPE_CHECKING

import pytest
from initlaunch import NEWPID, ROOT, ROOT_ONLY, Exchange, Launcher, Run, rooted

from knarr.plan.ops import CREATE_DIR, CREATE_FILE, NO_SLOT, REPLACE, Op

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("namespaces")


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    made = tmp_path / "rootfs"
    made.mkdir()
    return made


@pytest.fixture
def sentinel(tmp_path: Path) -> Path:
    """A directory outside the root that must stay as it is."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "f").write_text("keep")
    os.utime(outside / "f", (10**9, 10**9))
    return outside


def assert_untouched(outside: Path) -> None:
    assert sorted(os.listdir(outside)) == ["f"]
    file = outside / "f"
    assert file.read_text() == "keep"
    assert (file.stat().st_mtime, file.stat().st_uid, file.stat().st_nlink) == (10**9, os.geteuid(), 1)


def perform(launcher: Launcher, root: Path, *ops: Op) -> Run:
    run = launcher.start(rooted(root, *ops)).finish()
    if run.error is not None:
        # counted from the first of the operations under test
        run.error.index -= len(rooted(root)) - 1
    return run


def mkdir(path: str, mode: int = 0o755) -> Op:
    return Op("mkdir", [ROOT, mode], [path])


# -- making -------------------------------------------------------------------------------------------------------


def test_mkdir_with_parents(launcher: Launcher, rootfs: Path) -> None:
    perform(launcher, rootfs, mkdir("/a/b/c", 0o1770), mkdir("d"), mkdir("/e//f/./g/"), mkdir("/h/../i")).succeeded()
    assert stat.S_IMODE((rootfs / "a").stat().st_mode) == 0o755  # whatever the umask
    assert stat.S_IMODE((rootfs / "a/b/c").stat().st_mode) == 0o1770
    assert {"a", "d", "e", "h", "i"} == set(os.listdir(rootfs))
    assert (rootfs / "e/f/g").is_dir()


def test_mkdir_leaves_what_is_there(launcher: Launcher, rootfs: Path) -> None:
    (rootfs / "a").mkdir(0o700)
    (rootfs / "file").touch()
    perform(launcher, rootfs, mkdir("/a", 0o755), mkdir("/"), mkdir("/..")).succeeded()
    assert stat.S_IMODE((rootfs / "a").stat().st_mode) == 0o700
    perform(launcher, rootfs, mkdir("/file")).refused(0, errno.ENOTDIR)
    perform(launcher, rootfs, mkdir("/file/below")).refused(0, errno.ENOTDIR)


def test_root_of_no_slot_is_the_present_root(launcher: Launcher, rootfs: Path) -> None:
    plan = rooted(rootfs, Op("pivot", [ROOT, 0]), Op("mkdir", [NO_SLOT, 0o755], ["/new/one"]))
    launcher.start(plan).finish().succeeded()
    assert (rootfs / "new/one").is_dir()


@pytest.mark.parametrize("path", ["", "/" + "x" * 256, "/a/" + "x" * 300 + "/b", "/x" * 2100, "a" * 5000])
def test_impossible_names_leave_nothing_behind(launcher: Launcher, rootfs: Path, path: str) -> None:
    error = errno.ENAMETOOLONG if path else errno.ENOENT
    perform(launcher, rootfs, mkdir(path)).refused(0, error)
    assert os.listdir(rootfs) == []


def test_as_long_and_as_deep_as_possible(launcher: Launcher, rootfs: Path) -> None:
    name = "n" * 255
    path = "/".join([name] * 15)  # 3,839 bytes
    perform(launcher, rootfs, mkdir(path)).succeeded()
    deep = rootfs
    for _ in range(15):
        deep /= name
    fd = os.open(rootfs, os.O_RDONLY)
    for _ in range(15):
        inner = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(fd)


# -- links --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["existing", "dangling"])
@pytest.mark.parametrize("form", ["absolute", "dots"])
def test_links_lead_inside(launcher: Launcher, rootfs: Path, sentinel: Path, where: str, form: str) -> None:
    """R-7, R-10: the path a link names is looked for, and made, below the root."""
    target = str(sentinel if where == "existing" else sentinel / "new")
    (rootfs / "dev").symlink_to(target if form == "absolute" else "../" * 30 + target[1:])
    ops = [mkdir("/dev/pts"), Op("symlink", [ROOT, 0], ["/dev/fd", "/proc/self/fd"])]
    ops.append(Op("mount", [ROOT, 0, 0, CREATE_DIR], ["tmpfs", "tmpfs", "/dev/shm"]))
    ops.append(Op("bind", [ROOT, NO_SLOT, CREATE_FILE, 0, 0, 0, 0, 0], ["/etc/hostname", "/dev/name"]))
    perform(launcher, rootfs, *ops).succeeded()
    assert_untouched(sentinel)
    inside = rootfs / target[1:]
    assert set(os.listdir(inside)) == {"pts", "fd", "shm", "name"}
    assert inside.joinpath("name").is_file()


@ROOT_ONLY
def test_a_file_behind_a_dangling_link_is_made_inside(launcher: Launcher, rootfs: Path, sentinel: Path) -> None:
    """CVE-2024-45310: open(O_CREAT) without O_EXCL would follow the link, from the host's root."""
    (rootfs / "link").symlink_to(sentinel / "new")
    bind = Op("bind", [ROOT, NO_SLOT, CREATE_FILE, 0, 0, 0, 0, 0], ["/etc/passwd", "/link"])
    assert perform(launcher, rootfs, bind).error is None
    assert_untouched(sentinel)
    assert (rootfs / str(sentinel)[1:] / "new").is_file()


def test_chain_of_links(launcher: Launcher, rootfs: Path, sentinel: Path) -> None:
    for number in range(38):
        (rootfs / f"l{number}").symlink_to(f"l{number + 1}")
    (rootfs / "l38").symlink_to(f"{sentinel}/deep")
    perform(launcher, rootfs, mkdir("/l0/x")).succeeded()
    assert (rootfs / str(sentinel)[1:] / "deep/x").is_dir()
    assert_untouched(sentinel)


def test_more_than_40_links(launcher: Launcher, rootfs: Path) -> None:
    for number in range(41):
        (rootfs / f"l{number}").symlink_to(f"l{number + 1}")
    perform(launcher, rootfs, mkdir("/l0")).refused(0, errno.ELOOP)
    (rootfs / "loop").symlink_to("loop")
    (rootfs / "ping").symlink_to("pong")
    (rootfs / "pong").symlink_to("ping/x")
    perform(launcher, rootfs, mkdir("/loop/x")).refused(0, errno.ELOOP)
    perform(launcher, rootfs, mkdir("/ping/x")).refused(0, errno.ELOOP)


def test_more_than_40_dangling_links_one_after_another(launcher: Launcher, rootfs: Path) -> None:
    """Each is replaced by its text, so the kernel never sees more than one of them."""
    for number in range(45):
        (rootfs / f"d{number}").symlink_to(f"made{number}")
    perform(launcher, rootfs, mkdir("/" + "/../".join(f"d{number}" for number in range(40)))).succeeded()
    for number in range(40):
        (rootfs / f"made{number}").rmdir()
    perform(launcher, rootfs, mkdir("/" + "/../".join(f"d{number}" for number in range(45)))).refused(0, errno.ELOOP)


def test_links_that_grow_without_end(launcher: Launcher, rootfs: Path) -> None:
    (rootfs / "grow").symlink_to("grow/" + "y" * 200)
    perform(launcher, rootfs, mkdir("/grow")).refused(0, errno.ELOOP)
    # every link adds 250 bytes of names that do not exist: too long before it is too many
    for number in range(39):
        (rootfs / f"g{number}").symlink_to(f"m/../g{number + 1}/" + "z" * 240)
    run = perform(launcher, rootfs, mkdir("/g0"))
    assert run.error is not None
    assert run.error.value in {errno.ENAMETOOLONG, errno.ELOOP}


def test_a_long_name_behind_a_link(launcher: Launcher, rootfs: Path) -> None:
    (rootfs / "l").symlink_to("a/" + "x" * 300)
    perform(launcher, rootfs, mkdir("/l/b")).refused(0, errno.ENAMETOOLONG)


def test_magic_links_are_refused(launcher: Launcher, rootfs: Path) -> None:
    """CVE-2024-21626's mechanism: /proc/self/fd and /proc/1/root lead out of any root."""
    proc = Op("mount", [ROOT, 0, 0, CREATE_DIR], ["proc", "proc", "/proc"])
    for path in ("/proc/self/root/x", "/proc/self/cwd/x", "/proc/self/fd/3/x", "/fd/3/x"):
        (rootfs / "fd").unlink(missing_ok=True)
        (rootfs / "fd").symlink_to("/proc/self/fd")
        plan = rooted(rootfs, proc, mkdir(path), flags=NEWPID)
        launcher.start(plan).finish().refused(len(plan) - 2, errno.ELOOP)


# -- nodes --------------------------------------------------------------------------------------------------------


def mknod(path: str, mode: int, major: int = 0, minor: int = 0, uid: int = 0, gid: int = 0) -> Op:
    return Op("mknod", [ROOT, mode, major, minor, uid, gid], [path])


@ROOT_ONLY
def test_mknod(launcher: Launcher, rootfs: Path) -> None:
    perform(
        launcher,
        rootfs,
        mknod("/dev/null", stat.S_IFCHR | 0o666, 1, 3),
        mknod("/dev/disk", stat.S_IFBLK | 0o660, 8, 1, 0, 6),
        mknod("/dev/big", stat.S_IFCHR | 0o600, 0xFFF, 0xFFFFF, 1000, 1001),
        mknod("/pipe", stat.S_IFIFO | 0o622),
    ).succeeded()
    seen = {path.name: path.lstat() for path in [*(rootfs / "dev").iterdir(), rootfs / "pipe"]}
    assert stat.S_IMODE((rootfs / "dev").stat().st_mode) == 0o755
    assert seen["null"].st_mode == stat.S_IFCHR | 0o666
    assert seen["null"].st_rdev == os.makedev(1, 3)
    assert seen["disk"].st_mode == stat.S_IFBLK | 0o660
    assert (seen["disk"].st_rdev, seen["disk"].st_gid) == (os.makedev(8, 1), 6)
    assert seen["big"].st_rdev == os.makedev(0xFFF, 0xFFFFF)
    assert (seen["big"].st_uid, seen["big"].st_gid) == (1000, 1001)
    assert seen["pipe"].st_mode == stat.S_IFIFO | 0o622


@ROOT_ONLY
def test_mknod_over_what_is_there(launcher: Launcher, rootfs: Path, sentinel: Path) -> None:
    null = stat.S_IFCHR | 0o666
    os.mknod(rootfs / "same", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    before = (rootfs / "same").stat()
    perform(launcher, rootfs, mknod("/same", null, 1, 3, 5, 6)).succeeded()
    assert (rootfs / "same").stat() == before  # it might be the host's, through a bind of its /dev
    os.mknod(rootfs / "other", null, os.makedev(1, 5))
    os.mknod(rootfs / "block", stat.S_IFBLK | 0o600, os.makedev(1, 3))
    (rootfs / "file").touch()
    (rootfs / "dir").mkdir()
    (rootfs / "link").symlink_to("same")
    (rootfs / "out").symlink_to(sentinel / "f")
    for name in ("other", "block", "file", "dir", "link", "out"):
        before = (rootfs / name).lstat()
        perform(launcher, rootfs, mknod(f"/{name}", null, 1, 3, 7, 7)).refused(0, errno.EEXIST)
        assert (rootfs / name).lstat() == before
    assert_untouched(sentinel)


def test_mknod_with_impossible_arguments(launcher: Launcher, rootfs: Path) -> None:
    for major, minor in ((0x1000, 0), (0, 0x100000), (1 << 32, 3)):
        perform(launcher, rootfs, mknod("/x", stat.S_IFCHR, major, minor)).refused(0, errno.EINVAL)
    for path in ("/", "/..", "/a/.", "/a/.."):
        perform(launcher, rootfs, mknod(path, stat.S_IFIFO)).refused(0, errno.EINVAL)
    assert os.listdir(rootfs) == []


def test_fifo_as_anyone(launcher: Launcher, rootfs: Path) -> None:
    perform(launcher, rootfs, mknod("/pipe", stat.S_IFIFO | 0o642)).succeeded()
    assert (rootfs / "pipe").stat().st_mode == stat.S_IFIFO | 0o642


def symlink(path: str, target: str, flags: int = 0) -> Op:
    return Op("symlink", [ROOT, flags], [path, target])


def test_symlink(launcher: Launcher, rootfs: Path, sentinel: Path) -> None:
    perform(launcher, rootfs, symlink("/dev/fd", "/proc/self/fd"), symlink("/dev/fd", "/proc/self/fd")).succeeded()
    assert os.readlink(rootfs / "dev/fd") == "/proc/self/fd"
    perform(launcher, rootfs, symlink("/dev/fd", "/proc/self")).refused(0, errno.EEXIST)
    perform(launcher, rootfs, symlink("/dev/fd", "/proc/self", REPLACE)).succeeded()
    assert os.readlink(rootfs / "dev/fd") == "/proc/self"
    (rootfs / "dir").mkdir()
    (rootfs / "file").touch()
    (rootfs / "out").symlink_to(sentinel / "f")
    perform(launcher, rootfs, symlink("/file", "x", REPLACE), symlink("/out", "x", REPLACE)).succeeded()
    assert os.readlink(rootfs / "file") == os.readlink(rootfs / "out") == "x"
    perform(launcher, rootfs, symlink("/dir", "x", REPLACE)).refused(0, errno.EISDIR)
    perform(launcher, rootfs, symlink("/dir", "x")).refused(0, errno.EEXIST)
    assert_untouched(sentinel)


# -- races --------------------------------------------------------------------------------------------------------


def test_race_of_a_directory_and_a_link(launcher: Launcher, rootfs: Path, sentinel: Path) -> None:
    """R-6, R-7: another container swaps a directory of a shared volume and a link out, all the time."""
    volume = rootfs / "v"
    volume.mkdir()
    (volume / "d").mkdir()
    (volume / "l").symlink_to(sentinel)
    ops = [mkdir(f"/v/d/n{number}/m") for number in range(300)]
    ops += [Op("symlink", [ROOT, 0], [f"/v/d/s{number}", "x"]) for number in range(300)]
    ops += [
        Op("bind", [ROOT, NO_SLOT, CREATE_FILE, 0, 0, 0, 0, 0], ["/etc/passwd", f"/v/d/b{number}"])
        for number in range(100)
    ]
    ops += [Op("mount", [ROOT, 0, 0, CREATE_DIR], ["tmpfs", "t", f"/v/d/t{number}"]) for number in range(100)]
    with Exchange(volume / "d", volume / "l") as exchange:
        for _ in range(3):
            run = launcher.start(rooted(rootfs, *ops))
            try:
                run.stop()
            except AssertionError:  # an operation may fail when it is disturbed; it may not lead out
                run.wait()
            else:
                inside = str(rootfs)
                ours = [point for point, rest in run.mounts.items() if " - tmpfs t " in rest]
                assert all(point.startswith(inside) for point in ours)
                run.go()
                run.finish()
            assert_untouched(sentinel)
    assert exchange.count > 20


def test_race_of_two_links(launcher: Launcher, rootfs: Path, sentinel: Path) -> None:
    """A dangling link that changes under our feet: each text is followed in root."""
    (rootfs / "one").symlink_to(sentinel / "new")
    (rootfs / "two").symlink_to("/inside")
    ops = [mkdir(f"/one/x{number}") for number in range(500)]
    with Exchange(rootfs / "one", rootfs / "two") as exchange:
        for _ in range(5):
            run = launcher.start(rooted(rootfs, *ops)).finish()
            assert run.error is None or run.error.value in {errno.EAGAIN, errno.ENOENT, errno.EEXIST}, run.error
            assert_untouched(sentinel)
    assert exchange.count > 20
    assert set(os.listdir(rootfs)) <= {"one", "two", "inside", str(sentinel).split("/")[1]}


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_again_is_tried_again(init_binary: Path, rootfs: Path) -> None:
    """What renames do now and then, for every second openat2."""
    words = [shutil.which("strace") or "", "-q", "-o", "/dev/null", "-e", "trace=openat2"]
    again = Launcher(init_binary, [*words, "-e", "inject=openat2:error=EAGAIN:when=1+2"])
    try:
        again.run([Op("open_root", [ROOT], [str(rootfs)]), *(mkdir(f"/a/x{n}") for n in range(20))]).succeeded()
    finally:
        again.close()
    assert len(os.listdir(rootfs / "a")) == 20


def test_renames_elsewhere_do_not_disturb(launcher: Launcher, rootfs: Path, tmp_path: Path) -> None:
    """openat2 says EAGAIN when a rename anywhere crosses a "..": it is tried again."""
    (tmp_path / "p").mkdir()
    (tmp_path / "q").mkdir()
    (rootfs / "a/b").mkdir(parents=True)
    ops = [mkdir(f"/a/b/../../a/b/../x{number}") for number in range(1000)]
    with Exchange(tmp_path / "p", tmp_path / "q") as exchange:
        perform(launcher, rootfs, *ops).succeeded()
    assert exchange.count > 5
    assert len(os.listdir(rootfs / "a")) == 1001
