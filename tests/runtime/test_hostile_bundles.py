"""Bundles made to break out: the vulnerabilities of other runtimes, by their numbers in docs/security.md.

Each test was seen to fail, either on the old runc and crun of Debian 12 (``THE_OLD_ONES_FAIL`` runs those here, where
they are installed) or with the guard taken out.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from blackbox import ROOT, Bundle, Runtime, left_behind, mounts_at, needs_busybox, needs_root

pytestmark = [needs_busybox, needs_root]


class Sentinel:
    """A directory outside of every root; ``touched`` tells what changed in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
        (path / "f").write_text("keep")
        (path / "f").chmod(0o600)
        (path / "ptmx").write_text("keep")
        for name in ("f", "ptmx"):
            os.utime(path / name, (1e9, 1e9))
        self.before = self.look()

    def look(self) -> dict[str, tuple[Any, ...]]:
        found = {}
        for path in sorted(self.path.rglob("*")):
            facts = path.lstat()
            content = path.read_bytes() if stat.S_ISREG(facts.st_mode) else b""
            found[str(path)] = (facts.st_mode, facts.st_uid, facts.st_gid, facts.st_nlink, facts.st_mtime_ns, content)
        return found

    def ok(self) -> bool:
        return self.look() == self.before and mounts_at(self.path) == []


@pytest.fixture
def sentinel(tmp_path: Path) -> Sentinel:
    return Sentinel(tmp_path / "sentinel")


def without(bundle: Bundle, *destinations: str) -> None:
    bundle.config["mounts"] = [entry for entry in bundle.config["mounts"] if entry["destination"] not in destinations]


def bind(source: Path | str, destination: str, *options: str) -> dict[str, Any]:
    return {"destination": destination, "type": "bind", "source": str(source), "options": ["rbind", *options]}


def digests(paths: list[Path]) -> dict[str, str]:
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def host_programs(runtime: Runtime) -> list[Path]:
    return [
        Path(sys.executable).resolve(),
        *(Path(word).resolve() for word in runtime.command if word.startswith("/") and Path(word).is_file()),
        ROOT / "src/knarr/init/knarr-init",
    ]


# -- CVE-2019-5736, the runtime's own binary -----------------------------------------------------------------------


def test_r1_the_container_cannot_become_or_see_the_runtime(ours: Runtime, bundle: Bundle) -> None:
    (bundle.rootfs / "x.sh").write_text("#!/proc/self/exe\n")
    (bundle.rootfs / "x.sh").chmod(0o755)
    programs = [path for path in host_programs(ours) if path.exists()]
    before = digests(programs)
    for args in (["/proc/self/exe"], ["/x.sh"]):
        done = ours("run", "--bundle", bundle.write(*args), ours.new_id())
        assert done.returncode != 0
        assert digests(programs) == before
    id = ours.new_id()
    for names in bundle.config["process"]["capabilities"].values():
        names.append("CAP_SYS_PTRACE")  # or /proc shows it nothing of an init
    # busybox's ash opens for appending without truncating: what the exploit does
    script = (
        "while :; do for p in /proc/[0-9]*; do "
        "readlink $p/exe >>/tmp/seen; (: >>$p/exe) 2>>/tmp/errors && echo $p >>/tmp/opened; done; done"
    )
    ours.ok("run", "--detach", "--bundle", bundle.write("sh", "-c", script), id)
    for _ in range(60):
        ours("exec", id, "true")
    ours.ok("delete", "--force", id)
    seen = set((bundle.rootfs / "tmp/seen").read_text().split("\n")) - {""}
    assert seen <= {"/bin/busybox", "/memfd:knarr-init", "/memfd:knarr-init (deleted)", "(deleted)"}, seen
    assert not (bundle.rootfs / "tmp/opened").exists() or "knarr" not in (bundle.rootfs / "tmp/opened").read_text()
    assert digests(programs) == before


def test_r1_the_memory_the_init_runs_from_is_sealed() -> None:
    """Seen to fail without the seals: the write then succeeds."""
    from knarr.runtime.launch import init_memfd, init_path

    if not os.path.exists(init_path()):
        pytest.skip("knarr-init is not built")
    fd = os.open(f"/proc/self/fd/{init_memfd()}", os.O_RDWR)
    try:
        with pytest.raises(PermissionError):
            os.write(fd, b"x")
        with pytest.raises(PermissionError):
            os.ftruncate(fd, 0)
    finally:
        os.close(fd)


# -- CVE-2016-9962, looking at an exec before it drops its descriptors ----------------------------------------------


def test_r2_an_exec_shows_no_descriptor_of_the_host(ours: Runtime, bundle: Bundle) -> None:
    caps = bundle.config["process"]["capabilities"]
    for name in caps:
        caps[name].append("CAP_SYS_PTRACE")
    script = (
        "while :; do for f in /proc/[0-9]*/fd/* /proc/[0-9]*/cwd; do readlink $f; done >>/tmp/seen 2>/dev/null; done"
    )
    id = ours.new_id()
    ours.ok("run", "--detach", "--bundle", bundle.write("sh", "-c", script), id)
    for _ in range(60):
        ours("exec", id, "true")
    ours.ok("delete", "--force", id)
    seen = set((bundle.rootfs / "tmp/seen").read_text().split("\n")) - {""}
    fine = re.compile(
        r"/|/proc|/proc/\d+(/fd)?|/tmp/seen|/dev/(null|pts/\d+)|(pipe|socket):\[\d+\]|anon_inode:.*|/memfd:(out|err|knarr-\w+).*|\(deleted\)"
    )
    assert {name for name in seen if not fine.fullmatch(name)} == set()


# -- CVE-2024-21626, a working directory or program through a leaked descriptor -------------------------------------


def test_r3_descriptors_lead_nowhere(runtime: Runtime, bundle: Bundle) -> None:
    """N=3 to 64 for ours; the patched references are asked a few times only."""
    for number in (*range(3, 20), 64) if runtime.name == "knarr" else (3, 7):
        link = bundle.rootfs / "w"
        link.unlink(missing_ok=True)
        link.symlink_to(f"/proc/self/fd/{number}")
        for process in (
            {"cwd": f"/proc/self/fd/{number}"},
            {"cwd": "/w"},
            {"cwd": f"/proc/self/fd/{number}/../../.."},
            {"args": [f"/proc/self/fd/{number}/../../../../bin/true"]},
        ):
            bundle.config["process"]["cwd"] = "/"
            done = runtime("run", "--bundle", bundle.write("readlink", "/proc/self/cwd", **process), runtime.new_id())
            if done.returncode == 0:
                assert done.stdout.startswith("/"), (process, done)
                assert "(unreachable)" not in done.stdout


def test_r3_exec_with_such_a_directory(runtime: Runtime, bundle: Bundle) -> None:
    id = runtime.new_id()
    runtime.ok("run", "--detach", "--bundle", bundle.write("sleep", "1000"), id)
    for number in range(3, 14):
        done = runtime("exec", "--cwd", f"/proc/self/fd/{number}", id, "ls", "/proc/self/cwd/")
        assert done.returncode != 0, done.stdout


# -- fake /proc and /sys -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["proc", "sys"])
def test_r4_proc_and_sys_must_be_directories(name: str, runtime: Runtime, bundle: Bundle) -> None:
    (bundle.rootfs / name).rmdir()
    (bundle.rootfs / name).symlink_to("/tmp")
    id = runtime.new_id()
    done = runtime("create", "--bundle", bundle.write("true"), id)
    assert done.returncode != 0
    assert left_behind(runtime, id) == []
    if runtime.name == "knarr":
        assert f"/mounts/{0 if name == 'proc' else 4}" in done.stderr


@pytest.mark.parametrize("place", ["/proc", "/proc/self/attr", "/proc/sys/net", "/proc/self/exe"])
def test_r4_nothing_may_lie_over_proc(place: str, ours: Runtime, bundle: Bundle) -> None:
    """Seen to fail on runc 1.1.5 and crun 1.8.1, which accept all but the first."""
    bundle.config["mounts"].append({"destination": place, "type": "tmpfs", "source": "tmpfs"})
    id = ours.new_id()
    done = ours("create", "--bundle", bundle.write("true"), id)
    assert done.returncode == 1
    assert "/mounts/5" in done.stderr
    assert left_behind(ours, id) == []


# -- CVE-2025-52881, procfs writes that land elsewhere --------------------------------------------------------------


def test_r5_sysctls_reach_the_true_file_or_fail(ours: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    """A plain file bound over the sysctl, in the mount namespace the runtime is called from."""
    decoy = tmp_path / "decoy"
    decoy.write_text("untouched")
    bundle.config["linux"]["sysctl"] = {"net.ipv4.ip_forward": "1"}
    path = bundle.write("cat", "/proc/sys/net/ipv4/ip_forward")
    words = " ".join([*ours.command, "run", "--bundle", path, ours.new_id()])
    script = f"mount --make-rprivate / && mount --bind {decoy} /proc/sys/net/ipv4/ip_forward && exec {words}"
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], stdin=-3, capture_output=True, check=False, timeout=30)
    assert decoy.read_text() == "untouched"
    assert (done.returncode, done.stdout) == (0, b"1\n") or (done.returncode == 1 and b"/linux/sysctl" in done.stderr)


# -- CVE-2021-30465, CVE-2024-45310, targets swapped while they are mounted ------------------------------------


class Swapper(threading.Thread):
    """Exchanges two names as fast as it can."""

    def __init__(self, one: Path, other: Path) -> None:
        super().__init__(daemon=True)
        self.names = os.fsencode(one), os.fsencode(other)
        self.done = threading.Event()
        self.count = 0

    def run(self) -> None:
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        while not self.done.is_set():
            libc.renameat2(-100, self.names[0], -100, self.names[1], 2)
            self.count += 1


@pytest.mark.parametrize("target", ["/v/d/x", "/v/d/new/deep"])
def test_r6_r7_a_swapped_target_stays_inside(
    target: str, ours: Runtime, bundle: Bundle, sentinel: Sentinel, tmp_path: Path
) -> None:
    volume = tmp_path / "volume"
    (volume / "d/x").mkdir(parents=True)
    (volume / "l").symlink_to(sentinel.path)
    bundle.config["mounts"] += [bind(volume, "/v", "rw"), {"destination": target, "type": "tmpfs", "source": "tmpfs"}]
    path = bundle.write("true")
    swapper = Swapper(volume / "d", volume / "l")
    swapper.start()
    results = []
    try:
        for _ in range(60):
            results.append(ours("run", "--bundle", path, ours.new_id()).returncode)
            assert sentinel.ok()
    finally:
        swapper.done.set()
        swapper.join()
    assert swapper.count > 1000
    assert 0 in results, "never won: the attack did not run"


# -- nodes and directories of the image's choice ------------------------------------------------------------


def test_r8_a_fake_null_does_not_unmask(runtime: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    """CVE-2025-31133."""
    fake = tmp_path / "dev"
    fake.mkdir()
    (fake / "null").symlink_to("/proc/version")
    without(bundle, "/dev", "/dev/pts", "/dev/shm")
    bundle.config["mounts"].append(bind(fake, "/dev", "rw"))
    bundle.config["linux"]["maskedPaths"] = ["/proc/keys"]
    done = runtime("run", "--bundle", bundle.write("cat", "/proc/keys"), runtime.new_id())
    if runtime.name == "runc" and "Linux version" in done.stdout:
        pytest.skip("runc 1.1.5 fails: the masked file shows /proc/version")
    assert "Linux version" not in done.stdout
    assert done.returncode != 0 or done.stdout == ""


@pytest.mark.parametrize("how", ["no /dev/pts of its own", "console is a link"])
def test_r9_a_fake_terminal(how: str, ours: Runtime, bundle: Bundle, tmp_path: Path, sentinel: Sentinel) -> None:
    """CVE-2025-52565."""
    if how.startswith("no"):
        fake = tmp_path / "pts"
        fake.mkdir()
        (fake / "0").symlink_to("/proc/version")
        without(bundle, "/dev/pts")
        bundle.config["mounts"].append(bind(fake, "/dev/pts", "rw"))
    else:
        fake = tmp_path / "dev"
        fake.mkdir()
        (fake / "console").symlink_to(sentinel.path / "f")
        (fake / "pts").mkdir()
        (fake / "shm").mkdir()
        without(bundle, "/dev")
        bundle.config["mounts"].insert(1, bind(fake, "/dev", "rw"))
    path = bundle.write("sh", "-c", "stat -c %t /dev/console; stat -f -c %T /dev/pts", terminal=True)
    done = ours("run", "--bundle", path, ours.new_id())
    assert done.returncode != 0 or done.stdout.startswith("88"), done  # 136, the Unix98 terminals
    assert sentinel.ok()


@pytest.mark.parametrize("how", ["absolute", "relative"])
def test_r10_dev_is_a_link_and_nothing_is_mounted_there(
    how: str, runtime: Runtime, bundle: Bundle, sentinel: Sentinel
) -> None:
    """CVE-2026-41579, CVE-2026-47766."""
    (bundle.rootfs / "dev").rmdir()
    target = str(sentinel.path) if how == "absolute" else "../" * 12 + str(sentinel.path)[1:]
    (bundle.rootfs / "dev").symlink_to(target)
    without(bundle, "/dev", "/dev/pts", "/dev/shm")
    runtime("run", "--bundle", bundle.write("true"), runtime.new_id())
    if runtime.name != "knarr" and not sentinel.ok():
        pytest.skip(f"{runtime.name} fails: it makes devices on the host")
    assert sentinel.ok()


@pytest.mark.parametrize("readonly", [True, False])
def test_r11_console_is_a_link_on_the_root(readonly: bool, ours: Runtime, bundle: Bundle, sentinel: Sentinel) -> None:
    """CVE-2026-88264."""
    without(bundle, "/dev")
    (bundle.rootfs / "dev/pts").mkdir()
    (bundle.rootfs / "dev/shm").mkdir()
    victim = bundle.rootfs / "victim"
    victim.write_text("keep")
    (bundle.rootfs / "dev/console").symlink_to("/victim")
    bundle.config["root"]["readonly"] = readonly
    ours(
        "run",
        "--bundle",
        bundle.write("sh", "-c", "echo over >/dev/console; grep victim /proc/self/mountinfo", terminal=True),
        ours.new_id(),
    )
    assert victim.read_text() in {"keep", "over\n"}
    done = ours("run", "--bundle", bundle.write("grep", "victim", "/proc/self/mountinfo", terminal=True), ours.new_id())
    assert "victim" not in done.stdout
    assert sentinel.ok()


def test_r12_null_is_a_link_to_a_file_of_the_host(
    runtime: Runtime, bundle: Bundle, sentinel: Sentinel, tmp_path: Path
) -> None:
    """CVE-2026-88265: crun 1.8.1 gives the host's file, and the host's /dev/null too, to uid 1000."""
    # A node of our own as stdin, so that no runtime gets hold of the machine's.
    own_null = tmp_path / "own-null"
    os.mknod(own_null, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    without(bundle, "/dev", "/dev/pts", "/dev/shm")
    (bundle.rootfs / "hostd").mkdir()
    bundle.config["mounts"].append(bind(sentinel.path, "/hostd", "rw"))
    (bundle.rootfs / "dev/null").symlink_to("/hostd/f")
    path = bundle.write("true", user={"uid": 1000, "gid": 1000})
    with own_null.open("rb") as stdin:
        runtime("run", "--bundle", path, runtime.new_id(), stdin=stdin)
    if runtime.name != "knarr" and not sentinel.ok():
        pytest.skip(f"{runtime.name} fails: the host's file changed hands")
    assert sentinel.ok()


# -- files the runtime makes in the root ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dev/null", "dev/ptmx", "dev/fd", "dev/console", "dev/pts", "dev/shm", "dev/core"])
def test_r13_planted_links_are_not_followed(name: str, ours: Runtime, bundle: Bundle, sentinel: Sentinel) -> None:
    without(bundle, "/dev")
    for target in (sentinel.path / "f", sentinel.path / "new", sentinel.path):
        planted = bundle.rootfs / name
        if planted.is_symlink():
            planted.unlink()
        planted.symlink_to(target)
        ours("run", "--bundle", bundle.write("true"), ours.new_id())
        assert sentinel.ok(), (name, target)


# -- the root itself, and no mount namespace -----------------------------------------------------------------


def test_r24_a_root_that_is_a_link_is_refused(runtime: Runtime, bundle: Bundle) -> None:
    (bundle.path / "link").symlink_to("rootfs")
    bundle.config["root"]["path"] = "link"
    id = runtime.new_id()
    done = runtime("run", "--bundle", bundle.write("true"), id)
    if runtime.name == "crun" and done.returncode == 0:
        pytest.skip("crun 1.8 fails: it follows the link")
    assert done.returncode == 1
    assert left_behind(runtime, id) == []
    if runtime.name == "knarr":
        assert "/root/path" in done.stderr


def shares_the_mount_namespace(bundle: Bundle) -> None:
    linux = bundle.config["linux"]
    linux["namespaces"] = [entry for entry in linux["namespaces"] if entry["type"] != "mount"]
    del linux["maskedPaths"], linux["readonlyPaths"]


@pytest.mark.parametrize("name", ["maskedPaths", "readonlyPaths", "rootfsPropagation"])
def test_r28_nothing_is_hidden_from_the_host(name: str, ours: Runtime, bundle: Bundle) -> None:
    kept = bundle.config["linux"].get(name, "slave")
    shares_the_mount_namespace(bundle)
    bundle.config["linux"][name] = kept
    id = ours.new_id()
    done = ours("run", "--bundle", bundle.write("true"), id)
    assert done.returncode == 1
    assert f"/linux/{name}" in done.stderr
    assert left_behind(ours, id) == []
    assert mounts_at(bundle.path) == []


def test_r28_mounts_on_the_host_go_with_the_container(runtime: Runtime, bundle: Bundle) -> None:
    """runc 1.1.5 leaves 8 mounts on the host, crun 1.8.1 seven."""
    shares_the_mount_namespace(bundle)
    id = runtime.new_id()
    done = runtime("run", "--detach", "--bundle", bundle.write("sleep", "1000"), id)
    if runtime.name == "knarr":
        assert done.returncode == 0
        assert "the root is a chroot" in done.stderr
        assert mounts_at(bundle.path)
        # what is executed later runs in the container's root, not in the host's
        assert set(runtime.ok("exec", id, "ls", "/").split()) == set(os.listdir(bundle.rootfs))
    runtime("delete", "--force", id)
    left = mounts_at(bundle.path)
    if runtime.name != "knarr" and left:
        unmount(bundle.path)
        pytest.skip(f"{runtime.name} fails: it leaves {len(left)} mounts on the host")
    assert left == []
    assert left_behind(runtime, id) == []


def unmount(path: Path) -> None:
    for line in reversed(mounts_at(path)):
        subprocess.run(["umount", "-l", line.split()[4]], check=False)


def test_r28_only_its_own_mounts_are_taken_away(ours: Runtime, bundle: Bundle) -> None:
    """An engine's overlay on the root directory stays; the mounts go also when the creator was killed or failed."""
    subprocess.run(["mount", "--bind", str(bundle.rootfs), str(bundle.rootfs)], check=True)
    try:
        before = mounts_at(bundle.path)
        assert len(before) == 1
        shares_the_mount_namespace(bundle)
        path = bundle.write("sleep", "1000")
        ours.ok("create", "--bundle", path, id := ours.new_id())
        assert len(mounts_at(bundle.path)) > 4
        ours.ok("delete", id)
        assert mounts_at(bundle.path) == before
        assert ours("run", "--bundle", bundle.write("/no/such"), ours.new_id()).returncode == 1
        assert mounts_at(bundle.path) == before
        bundle.config["hooks"] = {"createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", "kill -9 $PPID"]}]}
        id = ours.new_id()
        assert ours("create", "--bundle", bundle.write("true"), id).returncode == -9
        assert len(mounts_at(bundle.path)) > 4
        ours.ok("delete", "--force", id)
        assert mounts_at(bundle.path) == before
        assert left_behind(ours, id) == []
    finally:
        unmount(bundle.path)
