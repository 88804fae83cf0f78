"""The entries of index.json: read again only when they changed, changed many at a time; facts of documents by digest."""

from __future__ import annotations

import json
import os
import posix
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from knarr.base import fastjson
from knarr.base.errors import DigestMismatch, Exists, FileError, KnarrError, NotFound, SpecError
from knarr.content import facts
from knarr.content.facts import Facts, facts_of
from knarr.content.names import name_of, read_entries
from knarr.content.store import Store
from knarr.spec import image_validate, mediatypes

if TYPE_CHECKING:
    from knarr.spec.image import Descriptor


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store"))


def put(store: Store, number: int) -> Descriptor:
    """Put an image without a name into the store."""
    config = store.put(
        json.dumps(
            {
                "architecture": "arm64",
                "os": "linux",
                "created": "2026-01-02T03:04:05Z",
                "config": {"Labels": {"number": str(number)}},
                "rootfs": {"type": "layers", "diff_ids": [f"sha256:{number:064x}"]},
            }
        ).encode(),
        media_type=mediatypes.CONFIG,
    )
    layer = store.put(b"layer", media_type=mediatypes.LAYER)
    manifest = {"schemaVersion": 2, "mediaType": mediatypes.MANIFEST, "config": config, "layers": [layer]}
    return store.put(json.dumps(manifest).encode(), media_type=mediatypes.MANIFEST)


def index(store: Store) -> Path:
    return Path(store.path, mediatypes.INDEX_FILE)


def test_many_changes_are_one_write(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = put(store, 1), put(store, 2)
    renames: list[object] = []
    rename = os.rename

    def spy(*args: Any, **named: Any) -> None:
        renames.append(args)
        rename(*args, **named)

    for module in (os, posix):
        monkeypatch.setattr(module, "rename", spy)
    with store.changing() as names:
        for number in range(1000):
            names.tag(f"n:{number}", one)
        names.tag("n:7", two)
        with pytest.raises(Exists):
            names.tag("n:7", one, replace=False)
        assert names.untag("n:8")["digest"] == one["digest"]
        with pytest.raises(NotFound, match="there is"):
            names.untag("n:8")
        names.note(two)  # is there, by a name
        assert store.tags() == {}  # nothing is seen before the end
    assert len(renames) == 1
    assert list(store.tags()) == [*(f"n:{number}" for number in range(1000) if number not in (7, 8)), "n:7"]
    assert store.resolve("n:7")["digest"] == two["digest"]
    with store.changing() as names:
        names.forget(one["digest"])
        names.note(one)
        names.note(one)
    assert [(name_of(entry), entry["digest"]) for entry in store.entries()] == [
        ("n:7", two["digest"]),
        ("", one["digest"]),
    ]
    assert Store(store.path).entries() == json.loads(index(store).read_text())["manifests"]


def test_what_changes_nothing_writes_nothing(store: Store) -> None:
    one = put(store, 1)
    store.tag("x", one)
    store.tag("y", one)
    before = index(store).stat().st_ino, index(store).read_bytes()
    store.tag("x", one)
    store.note(one)
    store.forget(f"sha256:{'0' * 64}")
    with pytest.raises(NotFound):
        store.untag("z")

    def breaks_off() -> None:
        with store.changing() as names:
            names.untag("x")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        breaks_off()
    assert (index(store).stat().st_ino, index(store).read_bytes()) == before


def test_what_could_not_be_read_again_is_not_written(store: Store) -> None:
    one = put(store, 1)
    before = index(store).read_bytes()
    for wrong in ({"size": -1}, {"mediaType": "x"}, {"annotations": {"a": "\0"}}, {"urls": 1}):
        with pytest.raises(SpecError, match=r"entry of index\.json"):
            store.tag("x", {**one, **wrong})  # type: ignore[typeddict-item]
        with pytest.raises(SpecError, match=r"entry of index\.json"):
            store.note({**one, **wrong})  # type: ignore[typeddict-item]
    with pytest.raises(NotFound, match="blob"), store.changing() as names:
        names.tag("x", {**one, "digest": f"sha256:{'0' * 64}"})
    assert index(store).read_bytes() == before


def test_the_entries_are_those_of_the_file_at_any_time(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parsed once for the same bytes, and never believed of others: whatever inode, size and times they have."""
    one, two = put(store, 1), put(store, 2)
    store.tag("x", one)
    parsed: list[str] = []
    parse = image_validate.parse_index

    def spy(*args: Any, **named: Any) -> dict[str, Any]:
        parsed.append("")
        return parse(*args, **named)

    monkeypatch.setattr(image_validate, "parse_index", spy)
    for _ in range(5):
        assert store.resolve("x")["digest"] == one["digest"]
        assert store.named("y") == []
    assert parsed == []  # not even once: this process wrote it
    times = index(store).stat()
    text = index(store).read_text().replace(one["digest"], two["digest"])
    with index(store).open("r+") as file:  # in place, as skopeo does
        file.write(text)
    os.utime(index(store), ns=(times.st_atime_ns, times.st_mtime_ns))
    assert (index(store).stat().st_ino, index(store).stat().st_size) == (times.st_ino, times.st_size)
    assert store.resolve("x")["digest"] == two["digest"]
    assert len(parsed) == 1
    store.entries().clear()  # the list is the caller's
    assert len(store.entries()) == 1


def test_several_entries_of_one_name(store: Store) -> None:
    one, two = put(store, 1), put(store, 2)
    entries = [{**each, "annotations": {mediatypes.REF_NAME: "x"}} for each in (one, two)]
    index(store).write_text(json.dumps({"schemaVersion": 2, "manifests": [*entries, two]}))
    assert [entry["digest"] for entry in store.named("x")] == [one["digest"], two["digest"]]
    assert store.resolve("x")["digest"] == one["digest"]
    with store.changing() as names:
        names.forget(two["digest"])
        names.tag("y", two)
    assert {name: entry["digest"] for name, entry in store.tags().items()} == {"x": one["digest"], "y": two["digest"]}
    index(store).write_text(json.dumps({"schemaVersion": 2, "manifests": [*entries, two]}))
    assert store.untag("x")["digest"] == one["digest"]
    assert store.entries() == [two]


NAMES = st.sampled_from(["a", "b", "é/c:1", '"q"', "d"])
STEPS = st.lists(st.tuples(st.sampled_from(["tag", "untag", "note", "forget"]), NAMES, st.integers(0, 3)), max_size=12)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(STEPS, max_size=6))
@example([[("tag", "a", 0)], [("tag", "b", 1)], [("untag", "a", 0)]])
def test_a_change_writes_what_writing_all_anew_would(store: Store, batches: list[list[tuple[str, str, int]]]) -> None:
    made = [put(store, number) for number in range(4)]
    # Entries that have another one's text within, as another tool may write them.
    nested = {**made[0], "annotations": {mediatypes.REF_NAME: "a"}}
    first = {**made[1], "others": [made[3], nested, made[2]]}
    index(store).write_text(json.dumps({"manifests": [first, made[2]], "schemaVersion": 2, "annotations": {"x": "]}"}}))
    store.tag("d", made[0])
    for steps in batches:
        with store.changing() as names:
            for what, name, number in steps:
                if what == "tag":
                    names.tag(name, made[number])
                elif what == "untag":
                    with suppress(NotFound):
                        names.untag(name)
                elif what == "note":
                    names.note(made[number])
                elif what == "forget":
                    names.forget(made[number]["digest"])
        written = json.loads(index(store).read_bytes())
        assert written["manifests"] == store.entries()
        assert index(store).read_bytes() == fastjson.dumps(written)
        for name, entry in store.tags().items():
            assert [one for one in written["manifests"] if name_of(one) == name] == store.named(name)
            assert entry == store.named(name)[0]


def test_facts_are_read_once_and_looked_after(store: Store) -> None:
    known, made = Facts(store), put(store, 1)
    manifest = known.manifest(made)
    config = known.config(manifest["config"], manifest["configSize"])
    assert manifest["parts"] == {
        manifest["config"]: manifest["configSize"],
        **{layer["digest"]: layer["size"] for layer in json.loads(store.read_blob(made))["layers"]},
    }
    assert (manifest["layers"], manifest["kind"], manifest["nested"]) == (1, "", False)
    assert config["platform"] == {"os": "linux", "architecture": "arm64"}
    assert (config["labels"], config["created"]) == ({"number": "1"}, "2026-01-02T03:04:05Z")
    assert known.manifest(made) is manifest
    with pytest.raises(SpecError, match="announced"):
        known.manifest({**made, "mediaType": mediatypes.DOCKER_MANIFEST})
    with pytest.raises(KnarrError):
        known.manifest({**made, "size": made["size"] + 1})
    path = Path(store.blob_path(made["digest"]))
    data = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(b" " * len(data))  # another time of change
    with pytest.raises(DigestMismatch):
        known.manifest(made)
    assert known.manifest(made, look=False) is manifest
    path.unlink()
    with pytest.raises(NotFound):
        known.manifest(made)


def test_facts_are_kept_in_a_file_when_there_are_many(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(store.path, facts.FILE)
    made = [put(store, number) for number in range(10)]
    known = Facts(store)
    for one in made[:8]:
        known.manifest(one)
    known.save()
    assert not path.exists()  # so few are read again as quickly
    for one in made:
        row = known.manifest(one)
        known.config(row["config"], row["configSize"])
    known.save()
    assert path.stat().st_mode & 0o777 == 0o600
    monkeypatch.setattr(Store, "read_blob", None)
    again = Facts(store)
    for one in made:
        assert again.manifest(one) == known.manifest(one)
        assert again.config(again.manifest(one)["config"], again.manifest(one)["configSize"])
    monkeypatch.undo()

    written = path.read_bytes()
    for damage in (written[:-1], written.replace(b"arm64", b"amd64"), b"", b"\n", b"x"):
        path.write_bytes(damage)
        assert Facts(store)._rows == {}  # nothing of it is believed
    path.write_bytes(written)
    again.save(frozenset(one["digest"] for one in made[:1]))
    assert list(Facts(store)._rows) == [made[0]["digest"]]


def test_large_facts_are_not_kept(store: Store) -> None:
    config = {"architecture": "a", "os": "b", "rootfs": {"type": "layers", "diff_ids": []}}
    config["config"] = {"Labels": {"big": "x" * 5000}}
    made = store.put(json.dumps(config).encode(), media_type=mediatypes.CONFIG)
    known = Facts(store)
    assert known.config(made["digest"], made["size"])["labels"] == {"big": "x" * 5000}
    assert known._rows == {}


def test_a_collection_drops_the_facts_of_what_is_gone(store: Store) -> None:
    made = [put(store, number) for number in range(20)]
    with store.lock(shared=True), store.changing() as names:
        for number, one in enumerate(made):
            names.tag(f"n:{number}", one)
    assert store.gc().digests == ()
    path = Path(store.path, facts.FILE)
    assert path.exists()
    with store.changing() as names:
        for number in range(1, 20):
            names.untag(f"n:{number}")
    assert len(store.gc().digests) == 2 * 19
    assert list(facts_of(store)._rows) == [made[0]["digest"]]


def test_an_index_too_large_is_not_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("knarr.content.names.INDEX_LIMIT", 10)
    with pytest.raises(FileError, match="at most 10 are read"):
        read_entries(str(index(store)))
