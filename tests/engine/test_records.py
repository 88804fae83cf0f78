"""Records and names on disk: one winner, nothing left, links not followed, damage told."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from knarr.base.errors import Exists, InvalidId, KnarrError, NotFound, SpecError, UsageError
from knarr.engine import containers, records
from knarr.engine.names import random_name
from knarr.engine.paths import Places, make_private, places
from knarr.engine.records import Container

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def where(tmp_path: Path) -> Places:
    return Places(str(tmp_path / "store"), str(tmp_path / "run"))


def container(number: int, name: str = "") -> Container:
    return Container(f"{number:064x}", name, "image", "2026-01-01T00:00:00Z", ("true",))


def test_round_trip(where: Places) -> None:
    made = container(1, "one").replace(labels={"a": "b"}, layers=("sha256:x",), exit_code=3)
    folder = records.reserve(where, made)
    assert records.load(where, made.id) == made
    assert os.stat(folder).st_mode & 0o777 == 0o700
    assert os.stat(where.store).st_mode & 0o777 == 0o700
    assert records.find(where, "one") == records.find(where, made.id) == records.find(where, made.id[:40]) == made.id
    records.remove_directory(where, made.id, "one")
    assert os.listdir(where.containers) == os.listdir(where.names) == []
    records.remove_directory(where, made.id, "one")  # again is fine


def test_one_winner_for_a_name(where: Places) -> None:
    """I29: of many that want one name at once exactly one gets it, and the losers leave nothing."""
    for turn in range(5):
        won: list[int] = []
        lost: list[int] = []
        barrier = threading.Barrier(8)

        def want(
            number: int, won: list[int] = won, lost: list[int] = lost, barrier: threading.Barrier = barrier
        ) -> None:
            barrier.wait()
            try:
                records.reserve(where, container(number, "wanted"))
            except Exists:
                lost.append(number)
            else:
                won.append(number)

        threads = [threading.Thread(target=want, args=(turn * 100 + number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert len(lost) == 7
        assert len(os.listdir(where.containers)) == 1
        records.remove_directory(where, f"{won[0]:064x}", "wanted")


def test_a_name_of_a_half_removed_container_is_free(where: Places) -> None:
    records.reserve(where, container(1, "name"))
    os.unlink(f"{where.containers}/{1:064x}/container.json")
    os.rmdir(f"{where.containers}/{1:064x}")
    records.reserve(where, container(2, "name"))
    assert records.find(where, "name") == f"{2:064x}"


def test_one_winner_for_a_name_that_was_left(where: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    """I29: two find the name of a half-removed container; the slower may not free it again from the quicker."""
    records.reserve(where, container(1, "name"))
    os.unlink(f"{where.containers}/{1:064x}/container.json")
    os.rmdir(f"{where.containers}/{1:064x}")
    unlink = os.unlink
    pauses = [0.05, 0.2]

    def slowly(path: str, **options: Any) -> None:
        if path == f"{where.names}/name":
            time.sleep(pauses.pop(0))
        unlink(path, **options)

    monkeypatch.setattr(os, "unlink", slowly)
    won: list[int] = []

    def want(number: int) -> None:
        try:
            records.reserve(where, container(number, "name"))
        except Exists:
            return
        won.append(number)

    threads = [threading.Thread(target=want, args=(number,)) for number in (2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert records.find(where, "name") == f"{won[0]:064x}"


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", "-x", "a b", "a\n", "é", "x" * 129])
def test_names_that_are_no_file_names(name: str, where: Places) -> None:
    if name:
        with pytest.raises(InvalidId):
            records.reserve(where, container(1, name))
        assert records.ids(where) == []
    with pytest.raises((NotFound, UsageError)):
        records.find(where, name)


def test_ambiguous_start_of_an_id(where: Places) -> None:
    records.reserve(where, container(0xA1))
    records.reserve(where, container(0xA2))
    with pytest.raises(UsageError, match="any of 2"):
        records.find(where, "000")


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"format":99,"id":"x"}', b'{"format":1}', b"\0" * 100])
def test_a_damaged_record_is_told_and_can_be_removed(damage: bytes, where: Places) -> None:
    """L-13."""
    id = container(1).id
    records.reserve(where, container(1))
    with open(f"{where.containers}/{id}/container.json", "wb") as file:
        file.write(damage)
    with pytest.raises(SpecError):
        records.load(where, id)
    assert containers.listing(where, everything=True) == []
    with pytest.raises(KnarrError):
        containers.remove(where, id)
    assert containers.remove(where, id, force=True) == id
    assert records.ids(where) == []


def test_removing_never_follows_a_link(where: Places, tmp_path: Path) -> None:
    """I22: what a container left may lead anywhere."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "keep").write_text("keep")
    folder = records.reserve(where, container(1))
    os.makedirs(f"{folder}/upper/deep")
    os.symlink(outside, f"{folder}/upper/link")
    os.symlink(outside, f"{folder}/upper/deep/link")
    os.chmod(f"{folder}/upper/deep", 0o000)
    records.remove_directory(where, container(1).id, "")
    assert (outside / "keep").read_text() == "keep"
    assert records.ids(where) == []


def test_a_store_others_can_write_is_refused(tmp_path: Path) -> None:
    """I18."""
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(UsageError, match="writable by others"):
        make_private(str(tmp_path / "open"))
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="not a directory"):
        make_private(str(tmp_path / "file"))


def test_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KNARR_STORE", "/s")
    monkeypatch.setenv("KNARR_RUN", "/r")
    assert places() == Places("/s", "/r")
    assert places("/a/../b", "/c") == Places("/b", "/c")
    monkeypatch.delenv("KNARR_STORE")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert places().store == "/data/knarr"
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", "/h")
    assert places().store == "/h/.local/share/knarr"
    monkeypatch.delenv("HOME")
    with pytest.raises(UsageError, match="HOME"):
        places()


def test_random_names_are_names() -> None:
    from knarr.base.ids import check_id

    names = {random_name() for _ in range(300)}
    assert len(names) > 250
    for name in names:
        assert check_id(name) == name
        assert name.count("_") == 1
