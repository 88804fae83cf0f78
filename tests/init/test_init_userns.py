"""A user namespace made before the container's process, trees shown with its ids, a root opened by others (I1, I21)."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from pathlib import Path

import pytest
from initlaunch import (
    MS_PRIVATE,
    MS_REC,
    NEWNS,
    NEWPID,
    NEWUSER,
    PROC,
    ROOT,
    ROOT_ONLY,
    STOP,
    Launcher,
    Run,
    shell,
)

from knarr.plan.ops import CREATE_DIR, NO_SLOT, Op

pytestmark = ROOT_ONLY

USER, TREE = 40, 41
FIRST = 0x70000000


def user_ns(*uids: tuple[int, int, int], gids: tuple[tuple[int, int, int], ...] = ((0, FIRST, 65536),)) -> list[Op]:
    ranges = [number for row in (*uids, *gids) for number in row]
    return [Op("open_proc", [PROC]), Op("user_ns", [USER, PROC, len(uids), *ranges])]


OWN = user_ns((0, FIRST, 65536))
ENTER = [Op("setns", [USER, NEWUSER]), Op("clone", [NEWNS | NEWPID, NO_SLOT]), Op("become_root", [0])]


@pytest.fixture
def layer(tmp_path: Path) -> Path:
    """A tree with files of root's and of 1000, in a place that only root may enter."""
    made = tmp_path / "closed/layer"
    made.mkdir(parents=True)
    (tmp_path / "closed").chmod(0o700)
    (made / "roots").write_text("of root\n")
    (made / "roots").chmod(0o600)
    (made / "theirs").touch()
    os.chown(made / "theirs", 1000, 1001)
    (tmp_path / "closed/root").mkdir()
    return made


def test_the_maps_are_the_ones_asked_for(launcher: Launcher) -> None:
    plan = user_ns((0, FIRST, 10), (10, 5, 2), gids=((0, 7, 1),))
    said = launcher.output([*plan, *ENTER, *shell("cat /proc/self/uid_map /proc/self/gid_map; id -u; id -G")])
    assert said.split() == ["0", str(FIRST), "10", "10", "5", "2", "0", "7", "1", "0", "0"]


def test_the_helper_in_the_namespace_is_gone(launcher: Launcher) -> None:
    """It may end while the first stage goes on, but before the container's process is known, so before that runs."""
    size = 10_000 + secrets.randbelow(10_000)  # nobody else's
    made = user_ns((0, FIRST, size))
    for _ in range(20):
        run = launcher.start([*made, *made[1:], Op("clone", [0, NO_SLOT]), Op("sync", [STOP])]).stop()
        assert run.child
        there = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and (entry / "uid_map").read_text().split() == ["0", str(FIRST), str(size)]:
                    there.append(entry.name)
            except OSError:
                continue
        assert there == []
        run.go()
        run.finish().succeeded()


@pytest.mark.parametrize(
    ("plan", "number"),
    [
        ([Op("open_proc", [PROC]), Op("user_ns", [USER, PROC, 1, 0, FIRST])], errno.EINVAL),  # half a range
        ([Op("open_proc", [PROC]), Op("user_ns", [USER, PROC, 2, 0, FIRST, 1])], errno.EINVAL),  # fewer than it says
        ([Op("open_proc", [PROC]), Op("user_ns", [USER, 39, 1, 0, FIRST, 1, 0, FIRST, 1])], errno.EBADF),
        (user_ns((0, FIRST, 10), (5, 9, 1)), errno.EINVAL),  # ranges that overlap
        (user_ns(*((n, FIRST + n, 1) for n in range(300))), errno.E2BIG),  # more than the kernel takes at once
    ],
)
def test_what_is_no_map_is_refused(launcher: Launcher, plan: list[Op], number: int) -> None:
    launcher.run(plan).refused(1, number)


def shown(launcher: Launcher, layer: Path, *more: Op) -> Run:
    """The layer, with the namespace's ids, as lower layer of an overlay that becomes the root."""
    closed = layer.parent
    for name in ("upper", "work"):
        (closed / name).mkdir()
    os.chown(closed / "upper", FIRST, FIRST)  # it gives the merged root its owner
    data = f"lowerdir={layer},upperdir={closed}/upper,workdir={closed}/work"
    plan = [
        *OWN,
        Op("unshare", [NEWNS]),
        Op("propagation", [MS_REC | MS_PRIVATE], ["/"]),
        Op("open_source", [TREE, 0], [str(layer)]),
        Op("idmap", [TREE, USER, 0]),
        Op("cover", [TREE], [str(layer)]),
        Op("host_mount", [0], ["overlay", f"{closed}/root", "overlay", data]),
        Op("open_source", [ROOT, 0], [f"{closed}/root"]),
        *ENTER,
        Op("root_tree", [ROOT]),
        *more,
        Op("mkdir", [ROOT, 0o755], ["/made"]),
        Op("pivot", [ROOT, 0]),
        Op("sync", [STOP]),
    ]
    return launcher.start(plan).stop()


def test_layers_with_shifted_ids_below_a_root_only_the_first_stage_could_open(launcher: Launcher, layer: Path) -> None:
    run = shown(launcher, layer, Op("mount", [ROOT, 0, 0, CREATE_DIR], ["tmpfs", "tmpfs", "/tmp"]))
    facts = {name: (run.root / name).stat() for name in ("roots", "theirs", "made")}
    assert {name: (one.st_uid - FIRST, one.st_gid - FIRST) for name, one in facts.items()} == {
        "roots": (0, 0),
        "theirs": (1000, 1001),
        "made": (0, 0),
    }
    assert set(run.mounts) == {"/", "/tmp"}, "nothing of the host's is left"
    assert (layer.parent / "upper/made").stat().st_uid == FIRST
    assert layer.stat().st_uid == 0
    assert os.listdir(layer.parent / "root") == [], "the host sees no mount"
    run.go()
    run.finish().succeeded()


def test_without_the_shift_root_inside_may_do_nothing_to_roots_files(launcher: Launcher, layer: Path) -> None:
    """What the shift is for, and that there is no way around it: the namespace's root is not the host's."""
    plan = [*OWN, Op("open_source", [TREE, 0], [str(layer)]), *ENTER, Op("root_tree", [TREE]), Op("pivot", [TREE, 0])]
    launcher.start([*plan, Op("mkdir", [NO_SLOT, 0o755], ["/new"])]).finish().refused(len(plan), errno.EACCES)


def test_shifting_needs_a_detached_tree_and_a_namespace(launcher: Launcher, layer: Path) -> None:
    opened = [*OWN, Op("open_source", [TREE, 0], [str(layer)])]
    launcher.run([*opened, Op("idmap", [TREE, 39, 0])]).refused(3, errno.EBADF)
    other = Op("open_ns", [42, NEWNS], ["/proc/self/ns/mnt"])
    launcher.run([*opened, other, Op("idmap", [TREE, 42, 0])]).refused(4, errno.EINVAL)
    proc = [*OWN, Op("open_source", [TREE, 0], ["/proc"]), Op("idmap", [TREE, USER, 0])]
    launcher.run(proc).refused(3, errno.EINVAL)  # a file system whose ids cannot be shifted
    launcher.run([*OWN, Op("cover", [TREE], [str(layer)])]).refused(2, errno.EBADF)
    launcher.run([*OWN, Op("root_tree", [TREE])]).refused(2, errno.EBADF)


def test_directories_of_the_host_are_given_away_when_they_are_made(launcher: Launcher, tmp_path: Path) -> None:
    launcher.run([Op("host_mkdir", [0o750, 5, 6], [f"{tmp_path}/new"])]).succeeded()
    made = (tmp_path / "new").stat()
    assert (stat.S_IMODE(made.st_mode), made.st_uid, made.st_gid) == (0o750, 5, 6)
    launcher.run([Op("host_mkdir", [0o700, 8, 9], [f"{tmp_path}/new"])]).succeeded()
    assert (tmp_path / "new").stat().st_uid == 5, "one that is there stays as it is"


def test_a_new_file_system_is_shown_where_it_is_wanted(launcher: Launcher, layer: Path) -> None:
    plan = [
        *OWN,
        Op("unshare", [NEWNS]),
        Op("propagation", [MS_REC | MS_PRIVATE], ["/"]),
        Op("new_tree", [TREE, 1], ["tmpfs", "ours", "size=64k", "mode=711"]),
        Op("cover", [TREE], [str(layer)]),
        Op("sync", [STOP]),
    ]
    run = launcher.start(plan).stop()
    inside = Path(f"/proc/{run.pid}/root{layer}")
    assert (os.listdir(inside), inside.stat().st_mode & 0o7777) == ([], 0o711)
    assert os.statvfs(inside).f_flag & os.ST_RDONLY
    assert os.listdir(layer), "the host sees what it saw"
    run.go()
    run.finish().succeeded()


def test_a_file_system_that_cannot_be_is_refused_with_the_kernels_words(launcher: Launcher) -> None:
    refused = launcher.run([Op("new_tree", [TREE, 0], ["tmpfs", "t", "colour=red"])]).refused(0, errno.EINVAL)
    assert b"colour" in refused.detail
    launcher.run([Op("new_tree", [TREE, 0], ["nosuchfs", "t"])]).refused(0, errno.ENODEV)
    launcher.run([Op("new_tree", [TREE, 0], ["erofs", "/nowhere"])]).refused(0, errno.ENOENT)
