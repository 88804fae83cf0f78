"""Ids of its own for each of root's containers: who takes a range, what a process with one sees and may do."""

from __future__ import annotations

import multiprocessing
import os
import stat
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import enginekit
import pytest

from knarr.base.errors import Unsupported, UsageError
from knarr.bundle.options import VolumeMount
from knarr.engine import host, ids
from knarr.engine.api import Container, run
from knarr.engine.paths import Places, places

if TYPE_CHECKING:
    from collections.abc import Iterator

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user's containers share the user's ids")


# -- who takes which range -------------------------------------------------------------------------------------------


def test_ranges_leave_out_what_users_have() -> None:
    everything = ids.starts_of((), ())
    assert everything[0] == ids.FIRST
    assert everything[-1] + ids.SIZE == ids.END
    first = ids.FIRST + ids.SIZE
    users, groups = [("anna", first + 5, 10)], [("1000", first + 2 * ids.SIZE, ids.SIZE)]
    left = ids.starts_of(users, groups)
    assert set(everything) - set(left) == {first, first + 2 * ids.SIZE}


def test_ranges_may_be_given_in_the_tables() -> None:
    table = [("knarr", 200_000, 3 * ids.SIZE + 1), ("knarr", 5, 10), ("anna", 200_000 + ids.SIZE, 1)]
    assert ids.starts_of(table, table) == (200_000, 200_000 + 2 * ids.SIZE)
    # What only one table has cannot be used: one number counts for users and groups.
    assert ids.starts_of(table, ())[0] == ids.FIRST


@pytest.fixture
def registry(tmp_path: Path) -> list[str]:
    return [str(tmp_path / "ids")]


def folder(where: Path, name: str) -> str:
    (where / name).mkdir()
    return str(where / name)


def test_a_range_is_its_containers_until_it_is_given_back(registry: list[str], tmp_path: Path) -> None:
    one, two = folder(tmp_path, "one"), folder(tmp_path, "two")
    assert ids.take(ids.FIRST, one, registries=registry) == ids.FIRST
    assert stat.S_IMODE(os.stat(registry[0]).st_mode) == 0o700
    assert ids.take(ids.FIRST, two, registries=registry) == ids.FIRST + ids.SIZE, "the next that is free"
    ids.release(ids.FIRST, two, registries=registry)
    assert os.readlink(f"{registry[0]}/{ids.FIRST}") == one, "another's is not given back"
    ids.release(ids.FIRST, one, registries=registry)
    ids.release(ids.FIRST, one, registries=registry)
    assert ids.take(ids.FIRST, two, registries=registry) == ids.FIRST


def test_the_range_of_a_container_that_is_gone_is_taken_over(registry: list[str], tmp_path: Path) -> None:
    ids.take(ids.FIRST, str(tmp_path / "killed before it was made, or while it was removed"), registries=registry)
    assert ids.take(ids.FIRST, folder(tmp_path, "next"), registries=registry) == ids.FIRST


def test_the_last_range(registry: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ids, "_starts", lambda: (ids.FIRST,))
    ids.take(ids.FIRST, folder(tmp_path, "one"), registries=registry)
    with pytest.raises(Unsupported, match="no range is free"):
        ids.take(ids.FIRST, folder(tmp_path, "two"), registries=registry)
    monkeypatch.setattr(ids, "_starts", lambda: ())
    with pytest.raises(Unsupported, match="no range is free"):
        ids.candidate()


def _taker(registry: list[str], where: str, results: Any) -> None:
    taken = []
    for number in range(8):
        own = f"{where}/{os.getpid()}-{number}"
        os.mkdir(own)
        taken.append(ids.take(ids.FIRST, own, registries=registry))
        if number % 4 == 3:  # some go, and others may have theirs
            ids.release(taken.pop(), own, registries=registry)
            os.rmdir(own)
    results.put(taken)


def test_many_at_once_never_get_the_same(registry: list[str], tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    results: Any = context.Queue()
    takers = [context.Process(target=_taker, args=(registry, str(tmp_path), results)) for _ in range(6)]
    for each in takers:
        each.start()
    taken = [number for _ in takers for number in results.get(timeout=60)]
    for each in takers:
        each.join(60)
    assert len(taken) == 6 * 6
    assert len(set(taken)) == len(taken)
    assert {os.readlink(entry.path) for entry in os.scandir(registry[0]) if entry.is_symlink()} == {
        entry.path for entry in os.scandir(tmp_path) if "-" in entry.name
    }


# -- what is asked for, and where it cannot be -----------------------------------------------------------------------


def test_words_of_userns() -> None:
    assert [ids.parse_userns(text) for text in ("host", "auto", "auto:size=1", "auto:size=65536")] == [
        0,
        65536,
        1,
        65536,
    ]
    for text in (
        "",
        "keep-id",
        "ns:/x",
        "auto:",
        "auto:size=",
        "auto:size=0",
        "auto:size=65537",
        "auto:size=-1",
        "host:",
    ):
        with pytest.raises(UsageError):
            ids.parse_userns(text)


@needs_root
def test_where_it_cannot_be_the_default_says_so_and_the_wish_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    where = Places(str(tmp_path), str(tmp_path / "run"))
    monkeypatch.setattr(host, "kernel", lambda: (5, 18))
    count, note = ids.count_for(where, "", privileged=False, host_root=False)
    assert count == 0
    assert "root in this container is the host's root" in note
    assert "5.19" in note
    assert ids.count_for(where, "host", privileged=False, host_root=False) == (0, "")
    with pytest.raises(Unsupported, match=r"5\.19"):
        ids.count_for(where, "auto", privileged=False, host_root=False)
    monkeypatch.setattr(host, "kernel", lambda: (6, 2))
    assert "tmpfs, which can be shifted from Linux 6.3 on" in ids.why_not(where, host_root=True)
    monkeypatch.setenv("KNARR_DRIVER", "copy")  # a copy is made with the ids it is to have
    monkeypatch.setattr(host, "kernel", lambda: (5, 12))
    assert ids.why_not(where, host_root=False) == ""


@needs_root
def test_privileged_means_the_hosts_root_unless_it_is_said(tmp_path: Path) -> None:
    where = Places(str(tmp_path), str(tmp_path / "run"))
    assert ids.count_for(where, "", privileged=True, host_root=False) == (0, "")
    assert ids.count_for(where, "auto:size=9", privileged=True, host_root=False) == (9, "")


def test_an_ordinary_user_cannot_have_more_than_the_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    where = Places(str(tmp_path), str(tmp_path / "run"))
    monkeypatch.setattr(host, "rootless", lambda: True)
    assert ids.count_for(where, "", privileged=False, host_root=False) == (0, "")
    assert ids.count_for(where, "host", privileged=False, host_root=False) == (0, "")
    with pytest.raises(UsageError, match="it takes root"):
        ids.count_for(where, "auto", privileged=False, host_root=False)


# -- containers ------------------------------------------------------------------------------------------------------


@pytest.fixture
def place() -> Iterator[dict[str, Any]]:
    """Keyword arguments for a store and state of one's own; no range of a container of it may be left."""
    top = enginekit.new_folder()
    try:
        yield {"store": str(top / "store"), "state_dir": str(top / "run")}
        assert enginekit.leftovers(top) == []
    finally:
        enginekit.remove_folder(top)


def said(image: str, script: str, place: dict[str, Any], **options: Any) -> list[str]:
    result = run(image, ["sh", "-c", script], **options, **place)
    assert result.exit_code == 0, result
    return result.stdout.decode().split()


def range_of(image: str, place: dict[str, Any], **options: Any) -> list[int]:
    return [int(word) for word in said(image, "cat /proc/self/uid_map", place, **options)]


@needs_root
@pytest.mark.parametrize("which", ["image", "host:"])
def test_a_range_of_its_own_by_default(image: str, place: dict[str, Any], which: str) -> None:
    name = image if which == "image" else which
    script = (
        "cat /proc/self/uid_map /proc/self/gid_map; id -u; id -g; stat -c %u:%g / /bin/ /etc /etc/passwd /etc/hosts"
    )
    words = said(name, script, place)
    first = int(words[1])
    assert words[:8] == ["0", str(first), "65536", "0", str(first), "65536", "0", "0"]
    assert words[8:] == ["0:0"] * 5
    assert first in ids.starts_of((), ())
    assert range_of(name, place, userns="host") == [0, 0, 4294967295]
    assert range_of(name, place, userns="auto:size=100")[2] == 100


@needs_root
def test_no_two_containers_have_the_same(image: str, place: dict[str, Any]) -> None:
    with Container(image, ["sleep", "100"], **place) as one, Container(image, ["sleep", "100"], **place) as two:
        maps = [Path(f"/proc/{box.pid}/uid_map").read_text().split() for box in (one, two)]
        assert maps[0] != maps[1]
        for box, words in zip((one, two), maps, strict=True):
            link = os.readlink(f"{ids.REGISTRIES[0]}/{words[1]}")
            assert link == f"{place['store']}/containers/{box.id}"
        # The host's kernel sees the container's root as somebody without rights.
        status = Path(f"/proc/{one.pid}/status").read_text()
        assert f"Uid:\t{maps[0][1]}\t" in status


@needs_root
def test_files_belong_to_the_range_on_the_disk(image: str, place: dict[str, Any]) -> None:
    script = "touch /a; mkdir /d; chown 1000:1001 /d; chown 7 /data/file; cat /home/app/.x 2>/dev/null; exec sleep 100"
    with Container(image, ["sh", "-c", script], **place) as box:
        upper = Path(f"{place['store']}/containers/{box.id}/upper")
        deadline = time.monotonic() + 10
        while not (upper / "data/file").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        first = int(Path(f"/proc/{box.pid}/uid_map").read_text().split()[1])
        owners = {
            name: ((upper / name).stat().st_uid, (upper / name).stat().st_gid) for name in ("a", "d", "data/file")
        }
        assert owners == {"a": (first, first), "d": (first + 1000, first + 1001), "data/file": (first + 7, first)}
        assert box.exec(["stat", "-c", "%u:%g", "/a", "/d"]).stdout == b"0:0\n1000:1001\n"
        assert box.exec(["id", "-u"], user="app").stdout == b"1000\n"
        assert box.exec(["sh", "-c", "echo x >/dev/stdout"], user="app").stdout == b"x\n"


@needs_root
def test_standard_streams_can_be_opened_anew(image: str, place: dict[str, Any]) -> None:
    """As nginx does, which logs to a link to /dev/stdout: pipes and files of ours are given to the program."""
    script = ["sh", "-c", "echo out >/dev/stdout; echo err >/dev/stderr"]
    for user in ("", "app"):
        result = run(image, script, user=user, **place)
        assert (result.stdout, result.stderr) == (b"out\n", b"err\n"), result
        with Container(image, script, user=user, **place) as box:
            assert box.wait(20).stdout == b"out\n"


@needs_root
def test_ids_that_the_range_lacks(image: str, place: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="user 70000 cannot be had: the container has 65536 ids"):
        run(image, ["true"], user="70000", **place)
    with pytest.raises(UsageError, match="user 1000 cannot be had: the container has 100 ids"):
        run(image, ["true"], user="app", userns="auto:size=100", **place)
    assert said(image, "id -u", place, user="70000", userns="host") == ["70000"]


@needs_root
def test_other_ways_to_make_a_root(place: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    own = enginekit.layout(tmp_path / "image", Volumes={"/data": {}, "/empty": {}})
    script = "stat -c %u /data /data/file /empty /home/app; echo x >/data/new; echo x >/empty/new; stat -c %u /data/new"
    assert said(own, script, place) == ["0", "0", "0", "1000", "0"]
    assert said(own, script, place, read_only=True) == ["0", "0", "0", "1000", "0"]
    monkeypatch.setenv("KNARR_DRIVER", "copy")
    assert said(own, "stat -c %u /data/file /home/app; touch /new; stat -c %u /new", place) == ["0", "1000", "0"]
    assert range_of(own, place)[2] == 65536


@needs_root
def test_with_the_hosts_network(image: str, place: dict[str, Any]) -> None:
    words = said(image, "ls /sys/class/net; cat /proc/self/uid_map", place, network="host")
    assert "lo" in words
    assert words[-1] == "65536"


# -- volumes ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A directory of root's with a file for root alone."""
    made = tmp_path / "source"
    made.mkdir()
    (made / "secret").write_text("of root\n")
    (made / "secret").chmod(0o600)
    (made / "below").mkdir()
    made.chmod(0o777)
    return made


@needs_root
def test_a_volumes_owners_are_the_same_inside_and_outside(image: str, place: dict[str, Any], source: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=777", "knarr-test", source / "below"], check=True)
    try:
        script = "cat /v/secret; stat -c %u /v/secret; touch /v/new /v/below/new"
        assert said(image, script, place, volumes=[f"{source}:/v"]) == ["of", "root", "0"]
        run(image, ["touch", "/v/theirs", "/v/below/theirs"], user="app", volumes=[f"{source}:/v"], **place)
        for name in ("new", "below/new"):
            assert (source / name).stat().st_uid == 0
        for name in ("theirs", "below/theirs"):
            assert (source / name).stat().st_uid == 1000
    finally:
        subprocess.run(["umount", source / "below"], check=True)


@needs_root
def test_a_volume_left_as_it_is_is_closed_to_root_inside(image: str, place: dict[str, Any], source: Path) -> None:
    result = run(image, ["cat", "/v/secret"], volumes=[f"{source}:/v:noidmap"], **place)
    assert b"Permission denied" in result.stderr
    assert said(image, "stat -c %u /v/secret", place, volumes=[f"{source}:/v:noidmap"]) == ["65534"]
    assert said(image, "cat /v/secret", place, volumes=[f"{source}:/v"], userns="host") == ["of", "root"]


@needs_root
def test_volumes_whose_ids_cannot_be_shifted(image: str, place: dict[str, Any], source: Path) -> None:
    with pytest.raises(Unsupported, match=r"it lies on proc, whose ids cannot be shifted .*/proc:/v:noidmap"):
        run(image, ["true"], volumes=["/proc:/v"], **place)
    with pytest.raises(UsageError, match="no ids of its own"):
        run(image, ["true"], volumes=[f"{source}:/v:idmap"], userns="host", **place)
    subprocess.run(["mount", "-t", "proc", "knarr-test", source / "below"], check=True)
    try:
        changed, note = ids.shown(VolumeMount("bind", "/v", str(source)), shifted=True)
        assert changed.idmap == "idmap"
        assert "what is mounted below it is nobody's inside" in note
        assert said(image, "cat /v/secret; stat -c %u /v/below", place, volumes=[f"{source}:/v"])[2:] == ["65534"]
    finally:
        subprocess.run(["umount", source / "below"], check=True)


# -- killed at any moment --------------------------------------------------------------------------------------------


@needs_root
def test_killed_at_any_moment_nothing_stays_taken(image: str) -> None:
    top = enginekit.new_folder()
    person = enginekit.Person("root", top)
    try:
        assert person.knarr("run", "--rm", image, "true").returncode == 0
        for number in range(12):
            silent = subprocess.DEVNULL  # the container outlives its waiter and would hold a pipe
            process = person.start("run", "--name", f"n{number}", image, "sleep", "60", stdout=silent, stderr=silent)
            time.sleep(0.12 + 0.03 * number)
            process.kill()
            process.wait()
        where = places(str(top / "store"), str(top / "run"))
        for id in os.listdir(where.containers):
            assert person.knarr("rm", "-f", id).returncode == 0
        held = [
            entry.name
            for registry in ids.REGISTRIES
            if os.path.isdir(registry)
            for entry in os.scandir(registry)
            if entry.is_symlink() and os.readlink(entry.path).startswith(str(top)) and os.path.isdir(entry.path)
        ]
        assert held == []
        assert enginekit.leftovers(top) == []
    finally:
        enginekit.remove_folder(top)
