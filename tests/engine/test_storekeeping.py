"""df, prune and fsck of a store, with containers that use some of it."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import enginekit
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(params=enginekit.kinds())
def person(request: pytest.FixtureRequest) -> Iterator[enginekit.Person]:
    folder = Path(tempfile.mkdtemp(prefix="knarr-test-", dir="/var/tmp"))
    folder.chmod(0o755)
    try:
        yield enginekit.Person(request.param, folder)
    finally:
        enginekit.remove_folder(folder)


def told(person: enginekit.Person, *words: str, code: int = 0) -> Any:
    done = person.knarr("image", *words, "--json")
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


def image(person: enginekit.Person, name: str, labels: dict[str, str] | None = None) -> str:
    """An image in the store, unpacked or indexed, named ``name``."""
    reference = enginekit.layout(person.folder / name, Labels=labels or {})
    done = person.knarr("image", "copy", reference, f"store:{name}:1")
    assert done.returncode == 0, done.stderr
    done = person.knarr("run", "--rm", f"{name}:1", "true")
    assert done.returncode == 0, done.stderr
    return f"{name}:1"


def test_what_is_used_stays(person: enginekit.Person) -> None:
    image(person, "one", {"n": "1"})
    image(person, "two", {"n": "2"})
    assert person.knarr("run", "--name", "kept", "one:1", "true").returncode == 0
    rows = {row["Type"]: row for row in told(person, "df")}
    assert (rows["Images"]["Total"], rows["Images"]["Active"]) == (2, 1)
    assert rows["Containers"]["Total"] == 1
    assert 0 < rows["Images"]["Reclaimable"] < rows["Images"]["Size"]
    assert rows["Layers"]["Size"] > 0
    assert told(person, "prune")["Untagged"] == []
    gone = told(person, "prune", "--all")
    assert [name.rpartition("/")[2] for name in gone["Untagged"]] == ["two:1"]
    assert gone["Freed"] == rows["Images"]["Reclaimable"]
    assert person.knarr("run", "--rm", "one:1", "true").returncode == 0
    assert person.knarr("rm", "kept").returncode == 0
    assert told(person, "prune", "--all")["Layers"] != []
    assert {row["Type"]: row["Size"] for row in told(person, "df")}["Images"] == 0
    assert {row["Type"]: row["Size"] for row in told(person, "df")}["Layers"] == 0


def test_damage_is_found_and_mended(person: enginekit.Person) -> None:
    name = image(person, "one")
    assert told(person, "fsck") == []
    store = person.folder / "store"
    largest = max((store / "blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)
    largest.chmod(0o644)
    with largest.open("r+b") as file:
        file.seek(100)
        file.write(b"damage")
    (found,) = told(person, "fsck", code=125)
    assert found["What"] == f"blob sha256:{largest.name}"
    assert "but it has" in found["Why"] or "sha256" in found["Why"]
    first, second = told(person, "fsck", "--repair", code=125)
    assert first["Mended"]
    assert second["Why"] == f"sha256:{largest.name} is missing; pull it again"
    assert person.knarr("image", "copy", f"oci:{person.folder}/one:one", f"store:{name}").returncode == 0
    assert told(person, "fsck") == []


def test_damaged_tars_are_made_anew(person: enginekit.Person) -> None:
    name = image(person, "one")
    tars = person.folder / "store/tars"
    if not tars.exists():
        pytest.skip("images are unpacked here, not mounted from their tars")
    (tar,) = (tars / "tar").iterdir()
    tar.chmod(0o600)
    with tar.open("r+b") as file:
        file.write(b"x")
    damaged, index = told(person, "fsck", code=125)
    assert (damaged["What"], index["What"].startswith("index ")) == (f"tar {tar}", True)
    assert all(one["Mended"] for one in told(person, "fsck", "--repair"))
    assert list((tars / "tar").iterdir()) == list((tars / "index").iterdir()) == []
    assert person.knarr("run", "--rm", name, "true").returncode == 0
    assert told(person, "fsck") == []
