"""SELinux in a kernel that enforces it: what a container's labels are, and what it may not do because of them.

Debian's policy names container_t in lxc_contexts but has no such type, so a module (container.cil) brings it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import enginekit
import pytest
from blackbox import Bundle, Runtime

from knarr.spec.defaults import default_config

if TYPE_CHECKING:
    from collections.abc import Iterator

ENFORCE = Path("/sys/fs/selinux/enforce")
# Policy is the whole machine's: these load it, and turn it on and off.
pytestmark = pytest.mark.skipif(
    "KNARR_VM" not in os.environ or not ENFORCE.exists(),
    reason="loads SELinux policy: in the guest of make test-vm, booted with SELinux",
)

PROGRAM = [sys.executable, "-c", "import sys; from knarr.cli.main import main; sys.exit(main())"]
CLAIMS = Path("/var/lib/knarr/categories")
LABEL = ("cat", "/proc/self/attr/current")
LOOK = ("sh", "-c", "cat /proc/self/attr/current; echo; ls -Zd /")
PROCESS = re.compile(r"system_u:system_r:container_t:s0:(c\d+,c\d+)")
FILES = "system_u:object_r:container_file_t:s0"
USER = 1000
MODULE = Path(__file__).with_name("container.cil")


def enforce(on: bool) -> None:
    ENFORCE.write_text("1" if on else "0")


@pytest.fixture(autouse=True)
def enforcing() -> Iterator[None]:
    """Each test says when policy is enforced; pytest itself is not made for it."""
    yield
    enforce(False)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("image")
    for above in (folder, *folder.parents):
        if str(above).startswith("/tmp/"):
            above.chmod(0o755)
    return enginekit.layout(folder / "layout")


@pytest.fixture(scope="module")
def policy() -> None:
    subprocess.run(["semodule", "-i", str(MODULE)], check=True)


def knarr(*words: str, **more: object) -> subprocess.CompletedProcess[str]:
    given = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "timeout": 240, **more}
    return subprocess.run([*PROGRAM, *words], check=False, **given)  # type: ignore[call-overload,no-any-return]


def said(*words: str, **more: object) -> str:
    done = knarr("run", "--rm", *words, **more)
    assert done.returncode == 0, done
    return done.stdout.strip().rstrip("\0")


def label_of(path: Path) -> str:
    return os.getxattr(path, "security.selinux").rstrip(b"\0").decode()


def as_user() -> dict[str, object]:
    env = {**os.environ, "HOME": "/home/tester", "XDG_RUNTIME_DIR": f"/run/user/{USER}", "USER": "tester"}
    return {"user": USER, "group": USER, "extra_groups": [], "env": env, "cwd": "/"}


@contextlib.contextmanager
def running(image: str, *words: str, **more: Any) -> Iterator[str]:
    """A container in the background; its name."""
    name = f"c{os.urandom(4).hex()}"
    words = (*PROGRAM, "run", "--rm", "--name", name, *words, image, "--", "sleep", "600")
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, **more) as process:
        try:
            for _ in range(30):
                if knarr("exec", name, "true").returncode == 0:
                    break
                assert process.poll() is None
                time.sleep(0.5)
            yield name
        finally:
            knarr("kill", name)
            process.wait(60)


# -- the policy, and what it does not have -------------------------------------------------------------------------


def test_a_policy_without_the_type_gives_no_label_and_a_note(image: str) -> None:
    assert not PROCESS.search(Path("/sys/fs/selinux/policy").read_bytes().decode("latin-1"))
    done = knarr("run", "--rm", image, *LABEL)
    assert (done.returncode, "container_t" in done.stdout) == (0, False)
    assert "no SELinux label guards this container: the policy has no system_u:system_r:container_t" in done.stderr
    done = knarr("run", "--rm", "--security-opt", "label=level:s0:c1", image, "true")
    assert done.returncode == 125
    assert "container_t:s0:c1" in done.stderr


@pytest.mark.usefixtures("policy")
@pytest.mark.parametrize("mode", [False, True], ids=["permissive", "enforcing"])
@pytest.mark.parametrize("options", [(), ("--network", "host"), ("--userns", "host"), ("--user", "app")], ids=str)
def test_every_container_has_a_label(image: str, mode: bool, options: tuple[str, ...]) -> None:
    enforce(mode)
    assert PROCESS.fullmatch(said(*options, image, *LABEL))


@pytest.mark.usefixtures("policy")
@pytest.mark.parametrize("where", ["overlay", "copy", "host:"])
@pytest.mark.parametrize("userns", ["auto", "host"])
def test_all_that_is_its_own_shows_the_label(image: str, where: str, userns: str) -> None:
    if (where, userns) == ("host:", "auto"):
        pytest.skip("host: has ids of its own from Linux 6.3 on")
    env = {**os.environ, "KNARR_DRIVER": "copy" if where == "copy" else "overlay"}
    enforce(True)
    with running(where if where == "host:" else image, "--userns", userns, env=env) as name:
        knarr("exec", name, "sh", "-c", "echo made > /new").check_returncode()
        (container,) = json.loads(knarr("inspect", name).stdout)
        root = Path(f"/proc/{container['State']['Pid']}/root")
        assert PROCESS.fullmatch(container["ProcessLabel"])
        own = ["", "new", "etc/hosts", "dev", "dev/shm", "dev/pts", "proc/acpi", "tmp", "bin/sh"]
        own += ["dev/mqueue", "dev/null"] if userns == "host" else []
        assert {path: label_of(root / path) for path in own} == dict.fromkeys(own, container["MountLabel"])
        if userns == "auto":  # nobody's there, and the host's: neither can be labelled
            assert label_of(root / "dev/mqueue") != container["MountLabel"]
            assert label_of(root / "dev/null") == "system_u:object_r:null_device_t:s0"
        assert label_of(root / "proc") == "system_u:object_r:proc_t:s0"
        assert label_of(root / "sys") == "system_u:object_r:sysfs_t:s0"


# -- what it is for ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("policy")
def test_two_containers_cannot_read_each_others_files(image: str, tmp_path: Path) -> None:
    """Whoever gets to see another one's files, by a hole or a careless mount, still may not read them."""
    with running(image, "--userns", "host") as one:
        knarr("exec", one, "sh", "-c", "mkdir /own; echo secret > /own/secret").check_returncode()
        (container,) = json.loads(knarr("inspect", one).stdout)
        upper = f"{container['Directory']}/upper/own"
        assert label_of(Path(upper, "secret")) == container["MountLabel"]
        assert (CLAIMS / PROCESS.fullmatch(container["ProcessLabel"])[1]).is_symlink()  # type: ignore[index]
        look = ("--userns", "host", "--cap-add", "ALL", "-v", f"{upper}:/theirs", image, "cat", "/theirs/secret")
        enforce(True)
        done = knarr("run", "--rm", *look)
        assert (done.returncode, done.stdout) == (1, "")
        assert "ermission denied" in done.stderr
        assert said("--security-opt", "label=disable", *look) == "secret"
        assert said("--privileged", *look) == "secret"
        assert knarr("exec", one, "cat", "/own/secret").stdout == "secret\n"
        # Categories are what keeps them apart: with the other one's it may.
        level = container["MountLabel"].split(":", 3)[3]
        assert said("--security-opt", f"label=level:{level}", *look) == "secret"
        enforce(False)
        assert said(*look) == "secret"


@pytest.mark.usefixtures("policy")
@pytest.mark.parametrize("form", ["-v", "--mount"])
def test_volumes(image: str, tmp_path: Path, form: str) -> None:
    place = tmp_path / "volume"
    place.mkdir()
    (place / "file").write_text("content\n")
    (place / "out").symlink_to("/etc/hostname")
    before = label_of(Path("/etc/hostname"))

    def volume(relabel: str = "") -> tuple[str, ...]:
        if form == "-v":
            return "-v", f"{place}:/data" + (f":{relabel}" if relabel else "")
        word = {"": "", "z": ",relabel=shared", "Z": ",relabel=private"}[relabel]
        return "--mount", f"type=bind,source={place},target=/data{word}"

    enforce(True)
    read = (image, "cat", "/data/file")
    assert "ermission denied" in knarr("run", "--rm", *volume(), *read).stderr
    assert said(*volume("Z"), *read) == "content"
    assert re.fullmatch(rf"{FILES}:c\d+,c\d+", label_of(place / "file"))
    assert "ermission denied" in knarr("run", "--rm", *volume(), *read).stderr, "another container"
    assert said(*volume("z"), *read) == "content"
    assert {label_of(path) for path in (place, place / "file")} == {FILES}
    assert said(*volume(), image, "sh", "-c", "echo more >> /data/file; cat /data/file") == "content\nmore"
    assert label_of(Path("/etc/hostname")) == before, "no link is followed"


@pytest.mark.usefixtures("policy")
def test_the_systems_directories_get_no_containers_label(image: str) -> None:
    before = label_of(Path("/etc"))
    for path in ("/etc", "/usr", "/", "/var/lib/knarr", "/root"):
        done = knarr("run", "--rm", "-v", f"{path}:/x:Z", image, "true")
        assert done.returncode == 125
        assert "belongs to the system" in done.stderr
    assert label_of(Path("/etc")) == before


@pytest.mark.usefixtures("policy")
def test_streams_go_through_pipes_it_may_use(image: str, tmp_path: Path) -> None:
    enforce(True)
    (tmp_path / "in").write_text("through files\n")
    with (tmp_path / "in").open() as source, (tmp_path / "out").open("w") as target:
        done = knarr("run", "--rm", "-i", image, "cat", stdin=source, stdout=target, capture_output=False)
    assert (done.returncode, (tmp_path / "out").read_text()) == (0, "through files\n")
    words = [*PROGRAM, "run", "--rm", "-i", image, "cat"]
    done = subprocess.run(words, input="through pipes\n", capture_output=True, text=True, check=False, timeout=240)
    assert (done.returncode, done.stdout) == (0, "through pipes\n")
    script = f"import knarr; c = knarr.Container('{image}', ['sleep', '600']); c.start()\n"
    script += "r = c.exec(['sh', '-c', 'cat; cat /proc/self/attr/current'], input=b'lib\\n'); c.kill(); c.remove()\n"
    script += f"q = knarr.run('{image}', ['cat'], input=b'too')\nprint(r.stdout, q.stdout)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=240)
    assert re.match(r"b'lib\\nsystem_u:system_r:container_t:s0:c\d+,c\d+", done.stdout), done
    assert "b'too'" in done.stdout


# -- what can be said of it ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("policy")
@pytest.mark.parametrize("options", [("--security-opt", "label=disable"), ("--privileged",)], ids=str)
def test_without_it(image: str, options: tuple[str, ...]) -> None:
    enforce(True)
    label, root = said(*options, "host:", "--", *LOOK).split("\n")
    assert "container_t" not in label
    assert root.split()[0] == f"{FILES}:c1022,c1023", "what it leaves is for no other container"


@pytest.mark.usefixtures("policy")
def test_parts_of_it(image: str) -> None:
    enforce(True)
    words = ("--security-opt", "label=level:s0:c7,c9", "--security-opt", "label=filetype:container_ro_file_t")
    with pytest.raises(AssertionError):  # of that type nothing may be run
        said(*words, "host:", "--", *LOOK)
    enforce(False)
    label, root = said(*words, "host:", "--", *LOOK).split("\n")
    assert label.strip("\0 ") == "system_u:system_r:container_t:s0:c7,c9"
    assert root.split()[0] == "system_u:object_r:container_ro_file_t:s0:c7,c9"
    enforce(True)
    # What the policy does not let one enter is told before anything is begun.
    done = knarr("run", "--rm", "--security-opt", "label=type:sshd_t", image, "true")
    assert done.returncode == 125
    assert "the policy denies" in done.stderr
    done = knarr("run", "--rm", "--security-opt", "label=type:nosuch_t", image, "true")
    assert done.returncode == 125
    assert "the policy has no system_u:system_r:nosuch_t" in done.stderr


@pytest.mark.usefixtures("policy")
def test_exec_and_inspect_have_it_and_it_is_given_back(image: str) -> None:
    enforce(True)
    with running(image) as one, running(image) as two:
        found = []
        for name in (one, two):
            (container,) = json.loads(knarr("inspect", name).stdout)
            assert knarr("exec", name, *LABEL).stdout.strip("\0\n ") == container["ProcessLabel"]
            found.append(PROCESS.fullmatch(container["ProcessLabel"])[1])  # type: ignore[index]
            assert container["MountLabel"] == f"{FILES}:{found[-1]}"
        assert found[0] != found[1]
        assert {path.name for path in CLAIMS.iterdir() if path.is_symlink()} == set(found)
    assert [path for path in CLAIMS.iterdir() if path.is_symlink()] == []
    assert "container_t:s0 with two categories of its own" in knarr("info").stdout


@pytest.mark.usefixtures("policy")
def test_exec_with_a_label_of_its_own(tmp_path: Path) -> None:
    """The option of the runtime's, which the container itself need not have."""
    runtime, bundle = Runtime("knarr", tmp_path), Bundle(tmp_path / "bundle")
    id = runtime.new_id()
    wanted = "system_u:system_r:container_t:s0:c7,c8"
    try:
        runtime.ok("run", "--detach", "--bundle", bundle.write("sleep", "1000", noNewPrivileges=False), id)
        assert "container_t" not in runtime.ok("exec", id, *LABEL)
        assert runtime.ok("exec", "--process-label", wanted, id, *LABEL).strip("\0\n") == wanted
    finally:
        runtime.clean()


@pytest.mark.usefixtures("policy")
def test_an_ordinary_users_containers_too(image: str) -> None:
    head, root = said("host:", "--", *LOOK, **as_user()).split("\n")[:2]
    found = PROCESS.fullmatch(head.strip("\0 "))
    assert found
    assert root.split()[0] == f"{FILES}:{found[1]}"


# -- knarr-runtime -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("policy")
@pytest.mark.parametrize("long", [False, True], ids=["fsconfig", "mount"])
def test_a_label_with_commas_whichever_way_it_is_mounted(tmp_path: Path, long: bool) -> None:
    label = f"{FILES}:c1,c2"
    root = tmp_path / "bundle/rootfs"
    (root / "bin").mkdir(parents=True)
    shutil.copy("/bin/busybox", root / "bin")
    (tmp_path / ("l" * 200 if long else "l")).mkdir()
    lower = tmp_path / ("l" * 200 if long else "l")
    (tmp_path / "m").mkdir()
    config = default_config()
    config["process"].update(args=["/bin/busybox", "sleep", "60"], terminal=False)
    config["linux"]["mountLabel"] = label
    overlay = {"destination": "/o", "type": "overlay", "source": "overlay"}
    config["mounts"].append({**overlay, "options": [f"lowerdir={lower}:{tmp_path}/m"]})
    (tmp_path / "bundle/config.json").write_text(json.dumps(config))
    runtime, name = os.environ["KNARR_TEST_RUNTIME"], f"s{os.urandom(4).hex()}"
    subprocess.run([runtime, "run", "--detach", "--bundle", str(tmp_path / "bundle"), name], check=True, timeout=120)
    try:
        state = json.loads(subprocess.run([runtime, "state", name], capture_output=True, check=True).stdout)
        assert label_of(Path(f"/proc/{state['pid']}/root/o")) == label
    finally:
        subprocess.run([runtime, "delete", "--force", name], check=True)
