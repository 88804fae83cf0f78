"""Layers with a table of contents, in a registry: only the table and what is asked for are fetched, and verified."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ocimake
import pytest
import zstandard
from dockerregistry import docker_registry, need_docker_registry
from imagekit import call
from tarbuilder import f, header, tar

from knarr.base.errors import DigestMismatch, FormatError, KnarrError, SpecError
from knarr.engine.imaging.image import Image
from knarr.engine.imaging.look import files, read_file, touches, usage
from knarr.layer.chunked import open_index
from knarr.layer.tarball import FILE
from knarr.layer.toc import parse_toc
from knarr.spec import mediatypes

sys.path.append(str(Path(__file__).parents[1] / "registry"))
import fakeregistry  # it lies beside the registry's tests  # pyright: ignore[reportMissingImports]

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fakeregistry import FakeRegistry

    Cli = Callable[..., tuple[int, str, str]]

HERE = Path(__file__).parent / "chunked"
KINDS = ("chunked.zst", "stargz.gz", "grouped.gz")


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeRegistry]:
    for name in ("REGISTRY_AUTH_FILE", "DOCKER_CONFIG", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with fakeregistry.FakeRegistry() as server:
        yield server


def sample(name: str) -> tuple[bytes, dict[str, str], str]:
    """A layer that another program wrote: its bytes, annotations and media type."""
    data = (HERE / name).read_bytes()
    notes = json.loads((HERE / name).with_suffix(".json").read_text())
    notes.pop("diffID", None)
    return data, notes, mediatypes.LAYER_ZSTD if name.endswith("zst") else mediatypes.LAYER_GZIP


def plain_of(data: bytes) -> bytes:
    if data.startswith(b"\x1f\x8b"):
        return gzip.decompress(data)
    return zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data), read_across_frames=True).read()


def image_of(data: bytes, notes: dict[str, str], media_type: str) -> ocimake.Image:
    """An image of a layer as it is, annotated."""
    made = ocimake.Image()
    made.config["rootfs"]["diff_ids"] = [ocimake.digest_of(plain_of(data))]
    return made.seal(layers=[{**made.put(data, media_type), "annotations": notes}])


def serve(fake: FakeRegistry, made: ocimake.Image) -> str:
    fake.blobs.update(made.blobs)
    fake.put("v1", made.blobs[made.descriptor["digest"]], mediatypes.MANIFEST)
    return f"docker://{fake.host}/{fakeregistry.REPOSITORY}:v1"


def told(image: Image, *, whole: bool) -> list[Any]:
    """All that a listing says."""
    return [
        (path, e.kind, e.mode, e.uid, e.gid, e.size, e.mtime, e.link, e.device, e.xattrs, node.number)
        for path, node in files(image, whole=whole)
        for e in (node.entry,)
    ]


@pytest.mark.parametrize("name", KINDS)
def test_the_table_says_what_the_tar_says(fake: FakeRegistry, name: str) -> None:
    ref = serve(fake, image_of(*sample(name)))
    with Image.open(ref) as image, Image.open(ref) as again:
        by_table, by_tar = told(image, whole=False), told(again, whole=True)
        assert by_table == by_tar
        assert len(by_table) > 14
        assert {row[1] for row in by_table} == {0, 2, 3, 5, 6}  # the hard link is the file it leads to
        assert (b"etc/nothing", 12, 34) in [(row[0], row[3], row[4]) for row in by_table]
        assert again.fetched - image.fetched > 10_000
    with Image.open(ref) as image:
        assert usage(image)["size"] == sum({row[-1]: row[5] for row in by_tar}.values())


@pytest.mark.parametrize("name", KINDS)
def test_every_file_is_what_the_tar_has(fake: FakeRegistry, name: str) -> None:
    ref = serve(fake, image_of(*sample(name)))
    with Image.open(ref) as image:
        paths = ["/" + os.fsdecode(path) for path, node in files(image) if node.entry.kind == FILE]
        assert "/usr/share/long" in paths
        for path in paths:
            assert read_file(image, path) == read_file(image, path, whole=True), path
        assert hashlib.sha256(read_file(image, "/usr/share/holes")).hexdigest() == hashlib.sha256(
            b"begin" + bytes(40_000) + b"end"
        ).hexdigest()  # fmt: skip
        assert read_file(image, "/etc/link") == b"hello\n"


@pytest.mark.parametrize("name", KINDS)
def test_few_bytes_are_fetched_and_counted(fake: FakeRegistry, cli: Cli, name: str) -> None:
    data, notes, media_type = sample(name)
    ref = serve(fake, image_of(data, notes, media_type))
    code, out, err = cli("image", "cat", ref, "/etc/hello")
    assert (code, out) == (0, "hello\n"), err
    blob = [request for request in fake.log if request.path.endswith(hashlib.sha256(data).hexdigest())]
    assert all("range" in request.headers for request in blob)
    count = int(err.partition(" bytes)")[0].rpartition("(")[2].partition(" of ")[0])
    assert count < len(data) / 3 or name == "grouped.gz"  # where nearly everything is one gzip member
    code, out, _ = cli("image", "which-layer", "--json", ref, "/etc/gone")
    assert (json.loads(out)["touched"][0]["what"], json.loads(out)["read"]) == ("hidden", [0])
    assert json.loads(out)["fetched"] < len(data) / 3
    assert cli("image", "tree", ref)[1] == cli("image", "tree", "--whole", ref)[1]
    assert cli("image", "ls", "-lR", ref)[1] == cli("image", "ls", "-lR", "--whole", ref)[1]


def test_against_a_real_registry(tmp_path: Path, cli: Cli) -> None:
    need_docker_registry()
    with docker_registry(tmp_path / "registry") as host:
        for name in KINDS:
            made = image_of(*sample(name))
            ocimake.write_layout(tmp_path / name, [ocimake.named(made.descriptor, "v1")], made)
            tag = name.partition(".")[0]
            call("skopeo", "copy", "-q", "--preserve-digests", "--dest-tls-verify=false", f"oci:{tmp_path / name}:v1",
                 f"docker://{host}/x:{tag}")  # fmt: skip
            code, out, err = cli("image", "cat", f"docker://{host}/x:{tag}", "/etc/hard")
            assert (code, out) == (0, "hello\n"), err
            count = int(err.partition(" bytes)")[0].rpartition("(")[2].partition(" of ")[0])
            assert count < len(sample(name)[0]) or name == "grouped.gz"


def test_a_registry_without_ranges_is_read_whole(fake: FakeRegistry) -> None:
    data, notes, media_type = sample("stargz.gz")
    made = image_of(data, notes, media_type)
    ref = serve(fake, made)
    fake.rule(
        f"/v2/{fakeregistry.REPOSITORY}/blobs/{ocimake.digest_of(data)}",
        lambda handler: handler.reply(200, data),
    )
    with Image.open(ref) as image:
        assert read_file(image, "/etc/hello") == b"hello\n"
        assert touches(image, "/etc/gone")[1][0].what == "hidden"
        assert image.fetched > len(data)


def test_a_local_image_is_read_whole(tmp_path: Path) -> None:
    made = image_of(*sample("chunked.zst"))
    ocimake.write_layout(tmp_path / "l", [ocimake.named(made.descriptor, "v1")], made)
    with Image.open(f"oci:{tmp_path / 'l'}:v1") as image:
        assert image.layers[0].index() is None
        assert read_file(image, "/etc/hello") == b"hello\n"


# -- what is wrong -----------------------------------------------------------------------------------------


def ranges(data: bytes) -> Callable[[int, int], io.BytesIO]:
    return lambda start, size: io.BytesIO(data[start : start + size])


def opened(data: bytes, notes: dict[str, str], media_type: str) -> Any:
    return open_index(notes, media_type, len(data), ranges(data), "layer x")


@pytest.mark.parametrize("name", KINDS)
def test_one_wrong_bit_anywhere_is_found_or_changes_nothing(name: str) -> None:
    """Every 97th byte turned over: a wrong table or content is an error, never other bytes."""
    data, notes, media_type = sample(name)
    right = opened(data, notes, media_type)
    want = [right.read(number, 1 << 20) for number in range(len(right.entries))]
    failed = 0
    for place in range(0, len(data), 97):
        bad = data[:place] + bytes((data[place] ^ 0x10,)) + data[place + 1 :]
        try:
            index = opened(bad, notes, media_type)
            if index is None:  # no footer any more: read whole, and then its digest is wrong
                continue
            got = [index.read(number, 1 << 20) for number in range(len(index.entries))]
        except (DigestMismatch, FormatError, SpecError):
            failed += 1
            continue
        assert got == want
    assert failed > len(data) / 97 / 2


def test_the_names_that_podman_4_3_gives_the_annotations() -> None:
    data, notes, media_type = sample("chunked.zst")
    old = {mediatypes.ZSTD_DIGEST: mediatypes.OLD_ZSTD_DIGEST, mediatypes.ZSTD_PLACE: mediatypes.OLD_ZSTD_PLACE}
    renamed = {old.get(name, name): value for name, value in notes.items()}
    index, known = opened(data, renamed, media_type), opened(data, notes, media_type)
    assert index is not None
    assert known is not None
    assert list(map(repr, index.entries)) == list(map(repr, known.entries)) != []
    with pytest.raises(DigestMismatch):
        opened(data, {**renamed, mediatypes.OLD_ZSTD_DIGEST: "sha256:" + "0" * 64}, media_type)
    with pytest.raises(DigestMismatch):  # what newer programs look at counts
        opened(data, {**renamed, **notes, mediatypes.ZSTD_DIGEST: "sha256:" + "0" * 64}, media_type)


def test_another_digest_in_the_annotation(fake: FakeRegistry, cli: Cli) -> None:
    for name, note in (("stargz.gz", mediatypes.ESTARGZ_DIGEST), ("chunked.zst", mediatypes.ZSTD_DIGEST)):
        data, notes, media_type = sample(name)
        ref = serve(fake, image_of(data, {**notes, note: "sha256:" + "0" * 64}, media_type))
        code, out, err = cli("image", "ls", ref)
        assert (code, out) == (125, "")
        assert "table of contents of layer sha256:" in err
        assert "0000" in err
        assert cli("image", "ls", "--whole", ref)[0] == 0
        with pytest.raises(KnarrError):
            opened(data, {**notes, note: "sha256:../../x"}, media_type)


@pytest.mark.parametrize("place", ["1:2:3", "-1:2:3:1", "1:60000000:3:1", "0x1:2:3:1", "9:1:0:1", "٣:2:3:1", "1:0:3:1", "1e3:2:3:1"])  # fmt: skip
def test_places_that_are_none(place: str) -> None:
    data, notes, media_type = sample("chunked.zst")
    with pytest.raises((FormatError, DigestMismatch)):
        opened(data, {**notes, mediatypes.ZSTD_PLACE: place}, media_type)


def test_a_table_that_is_too_large_is_not_read() -> None:
    data, notes, media_type = sample("chunked.zst")
    for place in ("1:99999999999:3:1", "1:2:99999999999:1"):
        assert opened(data, {**notes, mediatypes.ZSTD_PLACE: place}, media_type) is None


def test_a_table_that_is_a_bomb() -> None:
    """What it says it has decompressed is all that is decompressed."""
    bomb = zstandard.ZstdCompressor(level=19).compress(bytes(200 << 20))
    notes = {mediatypes.ZSTD_DIGEST: ocimake.digest_of(bomb), mediatypes.ZSTD_PLACE: f"8:{len(bomb)}:1000:1"}
    with pytest.raises(FormatError, match="more than the 1000 bytes"):
        opened(bytes(8) + bomb + bytes(64), notes, mediatypes.LAYER_ZSTD)


def reg(**more: Any) -> dict[str, Any]:
    return {"type": "reg", "name": "a", "size": 10, "offset": 100, "digest": "sha256:" + "1" * 64, **more}


def chunk(**more: Any) -> dict[str, Any]:
    return {"type": "chunk", "name": "a", "offset": 200, "chunkOffset": 5, "chunkSize": 5, **more}


BAD: list[tuple[list[Any], str]] = [
    ([7], "/entries/0/type"),
    ([{}], "/entries/0/type"),
    ([{"type": "socket", "name": "x"}], "/entries/0/type"),
    ([{"type": "dir"}], "/entries/0/name: is missing"),
    ([{"type": "dir", "name": 7}], "/entries/0/name"),
    ([{"type": "dir", "name": "x" * 4096}], "/entries/0/name"),
    ([{"type": "dir", "name": "x", "uid": -1}], "/entries/0/uid"),
    ([{"type": "dir", "name": "x", "gid": 1 << 31}], "/entries/0/gid"),
    ([{"type": "dir", "name": "x", "mode": True}], "/entries/0/mode"),
    ([{"type": "dir", "name": "x", "modtime": "yesterday"}], "/entries/0/modtime"),
    ([{"type": "dir", "name": "x", "modtime": "2026-02-30T00:00:00Z"}], "/entries/0/modtime"),
    ([{"type": "dir", "name": "x", "modtime": "2026-02-03T25:00:00Z"}], "/entries/0/modtime"),
    ([{"type": "dir", "name": "x", "xattrs": {"user.a": "???"}}], "/entries/0/xattrs"),
    ([{"type": "dir", "name": "x", "xattrs": {"user.a": 3}}], "/entries/0/xattrs"),
    ([{"type": "dir", "name": "x"}, chunk()], "chunks follow what has no content"),
    ([chunk()], "/entries/0/type"),
    ([reg(size=-1)], "/entries/0/size"),
    ([reg(size=1 << 40)], "/entries/0/size"),
    ([reg(offset=1000)], "/entries/0/offset"),
    ([reg(offset=-5)], "/entries/0/offset"),
    ([reg(digest="md5:1")], "/entries/0/digest"),
    ([reg(digest=["x"])], "/entries/0/digest"),
    ([reg(chunkSize=11)], "/entries/0/chunkSize"),
    ([reg(chunkSize=5)], "the chunks have 5 bytes of the file's 10"),
    ([reg(chunkOffset=1)], "/entries/0/chunkOffset"),
    ([reg(innerOffset=1 << 40)], "/entries/0/innerOffset"),
    ([reg(chunkSize=5), chunk(name="b")], "/entries/1/name"),
    ([reg(chunkSize=5), chunk(chunkOffset=4)], "/entries/1/chunkOffset"),
    ([reg(chunkSize=5), chunk(offset=50)], "/entries/1/offset"),
    ([reg(chunkSize=5), chunk(), chunk(chunkOffset=10)], "/entries/2/chunkSize"),
]


@pytest.mark.parametrize(("entries", "why"), BAD)
def test_tables_that_make_no_sense(entries: list[Any], why: str) -> None:
    document = json.dumps({"version": 1, "entries": entries}).encode()
    with pytest.raises(FormatError) as error:
        parse_toc(document, 1000, "table")
    assert why in str(error.value)


@pytest.mark.parametrize("document", [b"", b"[]", b'{"version": 1}', b'{"version": 2, "entries": []}',
                                      b'{"version": 1, "entries": [], "entries": []}', b'{"version": true, "entries": []}',
                                      b'{"version": 1, "entries": [' + b"[" * 300 + b"]" * 300 + b"]}"])  # fmt: skip
def test_documents_that_are_no_table(document: bytes) -> None:
    with pytest.raises((SpecError, FormatError)):
        parse_toc(document, 1000, "table")


def test_names_of_a_table_are_judged_as_a_tars(fake: FakeRegistry, cli: Cli) -> None:
    for name in ("../x", "a/../../x", "x" * 300, "a/" * 1001 + "b"):
        entries = [{"type": "reg", "name": name}]
        ref = serve(fake, made_of(entries))
        code, out, err = cli("image", "ls", ref)
        assert (code, out) == (125, ""), name
        assert err.startswith("knarr image ls: layer sha256:") or "entry" in err


def made_of(entries: list[dict[str, Any]]) -> ocimake.Image:
    """A zstd:chunked layer that holds a table and no file."""
    table = zstandard.ZstdCompressor().compress(json.dumps({"version": 1, "entries": entries}).encode())
    empty = zstandard.ZstdCompressor().compress(bytes(1024))
    data = empty + b"\x50\x2a\x4d\x18" + len(table).to_bytes(4, "little") + table
    size = len(json.dumps({"version": 1, "entries": entries}))
    notes = {
        mediatypes.ZSTD_DIGEST: ocimake.digest_of(table),
        mediatypes.ZSTD_PLACE: f"{len(empty) + 8}:{len(table)}:{size}:1",
    }
    return image_of(data, notes, mediatypes.LAYER_ZSTD)


def indexed(content: bytes, parts: list[dict[str, Any]]) -> Any:
    """The index of a zstd:chunked layer that has one file, described by ``parts`` at offset 0."""
    packed = zstandard.ZstdCompressor().compress(content)
    table = json.dumps({"version": 1, "entries": parts}).encode()
    toc = zstandard.ZstdCompressor().compress(table)
    data = packed + b"\x50\x2a\x4d\x18" + len(toc).to_bytes(4, "little") + toc
    notes = {
        mediatypes.ZSTD_DIGEST: ocimake.digest_of(toc),
        mediatypes.ZSTD_PLACE: f"{len(packed) + 8}:{len(toc)}:{len(table)}:1",
    }
    return opened(data, notes, mediatypes.LAYER_ZSTD)


def test_content_that_is_well_formed_and_another() -> None:
    """Whichever digest the table has decides: the whole's, or those of the chunks."""
    right = b"hello" + b"world"
    whole = {"type": "reg", "name": "a", "size": 10, "digest": ocimake.digest_of(right)}
    chunks = [
        {"type": "reg", "name": "a", "size": 10, "chunkSize": 5, "chunkDigest": ocimake.digest_of(b"hello")},
        {"type": "chunk", "name": "a", "chunkOffset": 5, "chunkSize": 5, "innerOffset": 0,
         "chunkDigest": ocimake.digest_of(b"world")},
    ]  # fmt: skip
    for parts in ([whole], chunks):
        assert indexed(right, parts).read(0, 100) == right
        assert indexed(right, parts).read(0, 9) == b""
        for wrong in (b"hellO" + b"world", b"hello" + b"worlD"):
            with pytest.raises(DigestMismatch):
                indexed(wrong, parts).read(0, 100)
        with pytest.raises(FormatError, match="too early"):
            indexed(right[:7], parts).read(0, 100)


def test_a_table_without_digests_is_not_used() -> None:
    assert indexed(b"0123456789", [{"type": "reg", "name": "a", "size": 10}]) is None


def test_no_more_is_taken_than_was_asked_for(fake: FakeRegistry) -> None:
    """A registry that does not say how much it sends, and sends more."""
    data, notes, media_type = sample("chunked.zst")
    ref = serve(fake, image_of(data, notes, media_type))
    head = f"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 10-19/{len(data)}\r\nConnection: close\r\n\r\n"
    fake.rule(
        f"/v2/{fakeregistry.REPOSITORY}/blobs/{ocimake.digest_of(data)}",
        lambda handler: handler.raw(head.encode() + data[10:500]),
    )
    with Image.open(ref) as image:
        stream = image.blobs.open_range(image.layers[0].descriptor, 10, 10)
        assert stream is not None
        assert stream.read(1000) == data[10:20]
        assert stream.read(1000) == b""
        stream.close()


def test_a_registry_that_sends_another_range(fake: FakeRegistry) -> None:
    """Other bytes, more bytes, fewer bytes: an error or not used, never believed."""
    data, notes, media_type = sample("chunked.zst")
    ref = serve(fake, image_of(data, notes, media_type))
    path = f"/v2/{fakeregistry.REPOSITORY}/blobs/{ocimake.digest_of(data)}"
    answers: list[Callable[[Any], bool]] = [
        lambda h: h.reply(206, data[:841], Content_Range=f"bytes 0-840/{len(data)}"),
        lambda h: h.reply(206, data[21781:], Content_Range=f"bytes 21781-{len(data) - 1}/{len(data)}"),
        lambda h: h.reply(206, bytes(841), Content_Range=f"bytes 21781-22621/{len(data)}"),
        lambda h: h.reply(416),
    ]
    for answer in answers:
        fake.rules[:] = [(path, answer)]
        with Image.open(ref) as image, pytest.raises(KnarrError):
            files(image)


# -- written by knarr --------------------------------------------------------------------------------------


def source_layout(tmp_path: Path) -> tuple[str, bytes]:
    """A layout with the samples' tar in gzip, and another layer; its reference and the tar."""
    plain = plain_of(sample("chunked.zst")[0])
    other = ocimake.tar_of({"big": os.urandom(9 << 20), "small": b"x"})
    made = ocimake.Image(plain, other)
    ocimake.write_layout(tmp_path / "in", [ocimake.named(made.descriptor, "v1")], made)
    return f"oci:{tmp_path / 'in'}:v1", plain


def from_layout(folder: Path, fake: FakeRegistry) -> str:
    """Serve what a layout holds under v1."""
    root = json.loads((folder / "index.json").read_text())["manifests"][0]
    for path in (folder / "blobs/sha256").iterdir():
        fake.blobs[f"sha256:{path.name}"] = path.read_bytes()
    fake.put("v1", fake.blobs[root["digest"]], mediatypes.MANIFEST)
    return f"docker://{fake.host}/{fakeregistry.REPOSITORY}:v1"


@pytest.mark.parametrize("how", ["estargz", "estargz:9", "zstd:chunked", "zstd:chunked:9"])
def test_what_is_written_is_read_in_part_and_whole(tmp_path: Path, fake: FakeRegistry, cli: Cli, how: str) -> None:
    ref, plain = source_layout(tmp_path)
    code, out, err = cli("image", "copy", "--compress", how, ref, f"oci:{tmp_path / 'out'}:v1")
    assert code == 0, err
    assert cli("image", "copy", "--compress", how, ref, f"oci:{tmp_path / 'again'}:v1")[1] == out  # reproducible
    kept = cli("image", "copy", "--compress", how, f"oci:{tmp_path / 'out'}:v1", f"oci:{tmp_path / 'more'}:v1")
    assert kept[1] == out  # is so already
    assert cli("image", "validate", f"oci:{tmp_path / 'out'}:v1")[0] == 0
    remote = from_layout(tmp_path / "out", fake)
    with Image.open(remote) as image, Image.open(ref) as before, Image.open(remote) as again:
        by_table = told(image, whole=False)
        assert image.fetched < 20_000
        assert by_table == told(again, whole=True)
        names = [row[:-1] for row in by_table if row[0] not in (b"stargz.index.json", b".no.prefetch.landmark")]
        assert names == [row[:-1] for row in told(before, whole=True)]
        assert [row[0] for row in by_table if row not in names].count(b"stargz.index.json") == how.startswith("estargz")
        same = [layer.diff_id for layer in image.layers] == [layer.diff_id for layer in before.layers]
        assert same == how.startswith("zstd")
        for path in ("/usr/share/long", "/usr/share/holes", "/etc/hello", "/bin/packed.gz", "/big", "/small"):
            assert read_file(image, path) == read_file(before, path), path
    assert hashlib.sha256(plain).hexdigest() in (tmp_path / "in/blobs/sha256" / before.id[7:]).read_text()


def test_from_one_to_another_and_back(tmp_path: Path, cli: Cli) -> None:
    """What only belongs to the one form goes with it: annotations, the table, the landmark."""
    ref, _ = source_layout(tmp_path)
    for how, target in (("estargz", "a"), ("zstd:chunked", "b"), ("estargz", "c"), ("gzip:9", "d"), ("zstd", "e")):
        before = ref
        ref = f"oci:{tmp_path / target}:v1"
        code, _, err = cli("image", "copy", "--compress", how, before, ref)
        assert code == 0, err
        with Image.open(ref) as image:
            for layer in image.layers:
                notes = layer.descriptor.get("annotations") or {}
                kinds = {"estargz": ["stargz"], "zstd:chunked": ["zstd-chunked"], "gzip:9": ["stargz"], "zstd": []}
                found = [word for word in ("stargz", "zstd-chunked") if any(word in note for note in notes)]
                assert found == kinds[how], (how, notes)
    with Image.open(f"oci:{tmp_path / 'a'}:v1") as first, Image.open(f"oci:{tmp_path / 'c'}:v1") as third:
        assert first.digest == third.digest


def test_other_programs_read_what_is_written(tmp_path: Path, cli: Cli) -> None:
    ref, _ = source_layout(tmp_path)
    assert cli("image", "copy", "--compress", "estargz", ref, f"oci:{tmp_path / 'e'}:v1")[0] == 0
    assert cli("image", "copy", "--compress", "zstd:chunked", ref, f"oci:{tmp_path / 'z'}:v1")[0] == 0
    need_docker_registry()
    with docker_registry(tmp_path / "registry") as host:
        for name in ("e", "z"):
            there = f"docker://{host}/x:{name}"
            call(
                "skopeo",
                "copy",
                "-q",
                "--preserve-digests",
                "--dest-tls-verify=false",
                f"oci:{tmp_path / name}:v1",
                there,
            )
            call("skopeo", "copy", "-q", "--src-tls-verify=false", there, f"oci:{tmp_path / name}2:v1")
            code, out, err = cli("image", "cat", there, "/small")
            assert (code, out) == (0, "x"), err
            assert int(err.partition(" bytes)")[0].rpartition("(")[2].partition(" of ")[0]) < 10_000
    rootless = ["--rootless"] if os.geteuid() else []
    call("umoci", "unpack", *rootless, "--image", f"{tmp_path / 'e'}:v1", f"{tmp_path / 'bundle'}")
    assert (tmp_path / "bundle/rootfs/etc/hello").read_text() == "hello\n"
    assert (tmp_path / "bundle/rootfs/stargz.index.json").exists()


def test_what_cannot_have_a_table(tmp_path: Path, cli: Cli) -> None:
    ref, _ = source_layout(tmp_path)
    code, _, err = cli("image", "copy", "--compress", "estargz", "--format", "docker", ref, f"dir:{tmp_path / 'd'}")
    assert code == 125
    assert "no annotations" in err
    code, _, err = cli("image", "add", "--compress", "zstd:chunked", ref, __file__, "/x", f"oci:{tmp_path / 'o'}:v1")
    assert code == 125
    assert "a single new layer is not written as zstd:chunked" in err
    pairs = b"".join(b"%011o\0" % number for number in (512, 512, 2048, 0))
    tail = bytes(41) + pairs.ljust(96, b"\0") + b"\0" + b"%011o\0" % 2048
    sparse = header(b"s", b"S", size=512, magic=b"ustar  \0", tail=tail) + bytes(512)
    for name, entry in (("sparse", tar(sparse)), ("name", tar(f(b"\xff\xfe", b"x")))):
        made = ocimake.Image(entry)
        ocimake.write_layout(tmp_path / name, [ocimake.named(made.descriptor, "v1")], made)
        code, _, err = cli(
            "image", "copy", "--compress", "estargz", f"oci:{tmp_path / name}:v1", f"oci:{tmp_path / 'x'}:v1"
        )
        assert code == 125
        assert "without a table of contents" in err
        assert not (tmp_path / "x").exists() or not json.loads((tmp_path / "x/index.json").read_text())["manifests"]


def test_the_sum_of_a_tar_split() -> None:
    """CRC-64 as Go has it: its check value, and against the definition bit by bit."""
    from knarr.layer.tarsplit import Crc64

    def defined(data: bytes) -> bytes:
        state = (1 << 64) - 1
        for byte in data:
            state ^= byte
            for _ in range(8):
                state = state >> 1 ^ (0xD800000000000000 if state & 1 else 0)
        return (state ^ ((1 << 64) - 1)).to_bytes(8, "big")

    check = Crc64()
    check.update(b"123456789")
    assert check.digest().hex() == "b90956c775a41001"
    for size in (0, 1, 7, 8, 9, 63, 64, 65, 4000):
        data = os.urandom(size)
        made = Crc64()
        made.update(data[: size // 3])
        made.update(data[size // 3 :])
        assert made.digest() == defined(data)
    whole, parts, data = Crc64(), Crc64(), os.urandom(200_000)
    whole.update(data)
    for at in range(0, len(data), 777):
        parts.update(data[at : at + 777])
    assert whole.digest() == parts.digest()
