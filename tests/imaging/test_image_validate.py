"""Every rule of the image specification has a case that breaks it, found under its name; sound images have no finding."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ocimake
import pytest
from ocimake import Image, named, write_layout
from tarbuilder import d, f, h, header, padded, tar, x

from knarr.base.errors import NotFound
from knarr.engine.imaging.rules import RULES
from knarr.engine.imaging.validate import validate
from knarr.spec import mediatypes

if TYPE_CHECKING:
    from collections.abc import Callable

    Cli = Callable[..., tuple[int, str, str]]
    Break = Callable[[Image, Path], list[dict[str, Any]] | None]

PAGE = Path(__file__).parents[2] / "docs" / "validate.md"


def image(**more: Any) -> Image:
    return Image(tar(d("a"), f("a/x", b"1")), tar(f("a/.wh.x")), config={"history": []}, **more)


def manifest(**changes: Any) -> Break:
    """Change members of the manifest; None takes one away."""

    def apply(made: Image, _path: Path) -> None:
        document = {key: value for key, value in {**made.manifest, **changes}.items() if value is not None}
        made.descriptor = made.put(json.dumps(document).encode(), mediatypes.MANIFEST)

    return apply


def config(**changes: Any) -> Break:
    """Change members of the config."""

    def apply(made: Image, _path: Path) -> None:
        made.config.update(changes)
        made.seal()

    return apply


def index(*, keep: bool = True, **changes: Any) -> Break:
    """An index over the image, with members changed."""

    def apply(made: Image, _path: Path) -> list[dict[str, Any]]:
        entry = {**made.descriptor, "platform": ocimake.platform("linux/amd64")}
        return [made.index(*([entry] if keep else []), **changes)]

    return apply


def layer(*entries: bytes, kind: str = "") -> Break:
    """Other layers: one of these entries."""

    def apply(made: Image, _path: Path) -> None:
        data = tar(*entries)
        made.manifest["layers"] = [made.put(ocimake.compress(data, kind), ocimake.COMPRESSED[kind])]
        made.config["rootfs"]["diff_ids"] = [ocimake.digest_of(data)]
        made.seal()

    return apply


def first_layer(**changes: Any) -> Break:
    """Change the descriptor of the first layer."""

    def apply(made: Image, _path: Path) -> None:
        made.manifest["layers"][0] = {**made.manifest["layers"][0], **changes}
        made.seal()

    return apply


def damage(made: Image, _path: Path) -> None:
    digest = made.manifest["layers"][0]["digest"]
    made.blobs[digest] = made.blobs[digest][:-1] + b"?"


def lose(made: Image, _path: Path) -> None:
    del made.blobs[made.manifest["layers"][0]["digest"]]


def swap(made: Image, _path: Path) -> None:
    made.config["rootfs"]["diff_ids"].reverse()
    made.seal()


def cut(made: Image, _path: Path) -> None:
    data = ocimake.compress(made.plain[0], "gzip") + b"rest"
    made.manifest["layers"][0] = made.put(data, mediatypes.LAYER_GZIP)
    made.seal()


def entry(**changes: Any) -> Break:
    """Change the entry of index.json."""
    return lambda made, _path: [{**named(made.descriptor, "v1"), **changes}]


def two_without_platform(made: Image, _path: Path) -> list[dict[str, Any]]:
    other = image(platform="linux/arm64")
    made.blobs.update(other.blobs)
    return [made.index(made.descriptor, other.descriptor)]


def empty_of_another_kind(made: Image, _path: Path) -> None:
    odd = made.put(b"[]", mediatypes.EMPTY)
    manifest(config=odd, artifactType="application/x", layers=[])(made, _path)


def no_artifact_type(made: Image, _path: Path) -> None:
    empty = made.put(b"{}", mediatypes.EMPTY)
    manifest(config=empty, layers=[empty])(made, _path)


def artifact_with_a_config(made: Image, _path: Path) -> None:
    manifest(config=made.put(b"x", "application/x"), layers=[])(made, _path)


def data_that_differs(made: Image, _path: Path) -> None:
    made.manifest["config"] = {**made.manifest["config"], "data": "e30="}
    made.descriptor = made.put(json.dumps(made.manifest).encode(), mediatypes.MANIFEST)


def unknown_algorithm(made: Image, _path: Path) -> None:
    first_layer(digest="blake3:" + "a" * 64)(made, _path)


def on_disk(change: Callable[[Path], object]) -> Break:
    """Change the finished layout."""

    def apply(made: Image, path: Path) -> None:
        made.later = change  # type: ignore[attr-defined]
        del path

    return apply


def blob_of_another_name(path: Path) -> None:
    (path / "blobs/sha256" / ("a" * 64)).write_bytes(b"x")


def sparse_header() -> bytes:
    pairs = b"".join(b"%011o\0" % number for number in (0, 512, 2048, 0))
    tail = bytes(41) + pairs.ljust(96, b"\0") + b"\0" + b"%011o\0" % 2048
    return header(b"s", b"S", size=512, magic=b"ustar  \0", tail=tail) + padded(b"x" * 512)


# rule -> what breaks it
CASES: dict[str, list[Break]] = {
    "blob-present": [lose],
    "blob-size": [first_layer(size=7)],
    "blob-digest": [damage],
    "digest-grammar": [first_layer(digest="sha256:ABC"), config(rootfs={"type": "layers", "diff_ids": ["x", "y"]})],
    "digest-algorithm": [unknown_algorithm],
    "document-shape": [manifest(schemaVersion=3), config(os=5), index(manifests={}), config(rootfs={"type": "x", "diff_ids": []})],
    "media-type-agrees": [manifest(mediaType=mediatypes.INDEX), entry(mediaType=mediatypes.INDEX)],
    "media-type-stated": [manifest(mediaType=None)],
    "one-kind": [manifest(manifests=[]), manifest(Layers=[]), index(layers=[])],
    "artifact-type": [no_artifact_type],
    "empty-descriptor": [empty_of_another_kind],
    "embedded-data": [data_that_differs],
    "layers-not-empty": [manifest(layers=[])],
    "layer-media-type": [first_layer(mediaType="application/x"), first_layer(mediaType=mediatypes.LAYER_GZIP + "+encrypted")],
    "layer-distributable": [first_layer(mediaType=mediatypes.LAYER_FOREIGN_GZIP)],
    "config-media-type": [artifact_with_a_config],
    "config-platform": [config(architecture="x86_64"), config(os="Linux")],
    "diff-ids-match": [config(rootfs={"type": "layers", "diff_ids": []})],
    "diff-id": [swap],
    "history-matches": [config(history=[{"created_by": "one"}])],
    "exposed-ports": [config(config={"ExposedPorts": {"80/foo": {}}})],
    "platform-matches": [
        lambda made, _p: [made.index({**made.descriptor, "platform": ocimake.platform("linux/arm64")})]
    ],
    "platform-stated": [two_without_platform],
    "index-entries": [lambda made, _p: [made.index(made.put(b"x", "application/x"))]],
    "index-not-empty": [index(keep=False)],
    "layer-compression": [cut, first_layer(mediaType=mediatypes.LAYER_ZSTD)],
    "layer-tar": [layer(f("../x")), layer(h("x", "nowhere")), layer(b"no tar" * 200), layer(f(".wh.a/b"))],
    "layer-entries-unique": [layer(f("a"), f("./a"))],
    "layer-no-sparse": [layer(sparse_header())],
    "layer-attributes": [layer(x(("SCHILY.xattr.security.selinux", "v")) + f("a"))],
    "layer-whiteouts": [layer(d(".wh.a")), layer(f("a/.wh.b", b"not empty"))],
    "layer-one-whiteout": [layer(f("a/.wh..wh..opq"), f("a/.wh.b"))],
    "layout-file": [on_disk(lambda path: (path / "oci-layout").unlink()), on_disk(lambda path: (path / "oci-layout").write_text("{}"))],
    "layout-index": [on_disk(lambda path: (path / "index.json").unlink()), on_disk(lambda path: (path / "index.json").write_text("[]"))],
    "layout-blobs": [on_disk(lambda path: shutil.rmtree(path / "blobs"))],
    "layout-blob-names": [on_disk(blob_of_another_name), on_disk(lambda path: (path / "blobs/sha256/short").write_bytes(b""))],
    "ref-name": [entry(annotations={mediatypes.REF_NAME: "-x"}), entry(annotations={mediatypes.REF_NAME: "a b"})],
    "annotation-keys": [manifest(annotations={"": "x"}), manifest(annotations={"a": 5})],
    "annotation-created": [manifest(annotations={mediatypes.CREATED: "yesterday"})],
}  # fmt: skip
ALL = [
    pytest.param(rule, change, id=f"{rule}-{number}")
    for rule, cases in CASES.items()
    for number, change in enumerate(cases)
]


def broken(change: Break, path: Path) -> str:
    made = image()
    entries = change(made, path) or [named(made.descriptor, "v1")]
    write_layout(path / "l", entries, made)
    later = getattr(made, "later", None)
    if later is not None:
        later(path / "l")
    return f"oci:{path}/l"


def test_every_rule_has_a_case() -> None:
    assert list(CASES) == list(RULES)


def test_a_sound_image_has_no_finding(tmp_path: Path) -> None:
    assert validate(broken(lambda _made, _path: None, tmp_path)) == []


@pytest.mark.parametrize(("rule", "change"), ALL)
def test_what_breaks_a_rule_is_found(rule: str, change: Break, tmp_path: Path) -> None:
    found = validate(broken(change, tmp_path))
    assert rule in {finding.rule for finding in found}, [str(finding) for finding in found]


@pytest.mark.parametrize("rule", [
    "digest-algorithm", "media-type-stated", "config-platform", "history-matches", "exposed-ports",
    "layer-entries-unique", "layer-no-sparse", "layer-attributes", "layer-whiteouts", "layer-one-whiteout", "ref-name",
    "annotation-created", "diff-id", "platform-matches", "platform-stated", "layout-blob-names", "artifact-type",
])  # fmt: skip
def test_and_nothing_else(rule: str, tmp_path: Path) -> None:
    found = validate(broken(CASES[rule][0], tmp_path))
    assert {finding.rule for finding in found} == {rule}, [str(finding) for finding in found]


def test_all_platforms_of_an_index_are_checked(tmp_path: Path) -> None:
    one, two = image(), image(platform="linux/arm64")
    lose(two, tmp_path)
    one.blobs.update(two.blobs)
    entries = [
        {**made.descriptor, "platform": ocimake.platform(text)}
        for made, text in ((one, "linux/amd64"), (two, "linux/arm64"))
    ]
    write_layout(tmp_path / "l", [named(one.index(*entries), "v1")], one)
    one.blobs.pop(two.manifest["layers"][0]["digest"], None)
    found = validate(f"oci:{tmp_path}/l:v1")
    assert [finding.rule for finding in found] in ([], ["blob-present"])


def test_one_image_of_a_layout(tmp_path: Path) -> None:
    good, bad = image(), image()
    swap(bad, tmp_path)
    good.blobs.update(bad.blobs)
    write_layout(tmp_path / "l", [named(good.descriptor, "good"), named(bad.descriptor, "bad")], good)
    assert validate(f"oci:{tmp_path}/l:good") == []
    assert {finding.rule for finding in validate(f"oci:{tmp_path}/l:bad")} == {"diff-id"}
    assert {finding.rule for finding in validate(f"oci:{tmp_path}/l")} == {"diff-id"}
    assert validate(f"oci:{tmp_path}/l:bad", layers=False) == []


def test_archives(tmp_path: Path) -> None:
    import tarfile

    made = image()
    write_layout(tmp_path / "l", [named(made.descriptor, "v1")], made)
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(tmp_path / "l", ".")
    (tmp_path / "d.tar").write_bytes(ocimake.tar_of(ocimake.docker_files("x:1", image=made)))
    assert validate(f"oci-archive:{tmp_path}/a.tar") == []
    # docker save states no media type of layers and no manifest: what is made of it is sound
    assert validate(f"docker-archive:{tmp_path}/d.tar") == []


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        validate(f"oci:{tmp_path}/none")
    with pytest.raises(NotFound):
        validate("nothing:1")


def test_command(tmp_path: Path, cli: Cli) -> None:
    good = broken(lambda _made, _path: None, tmp_path / "good")
    bad = broken(swap, tmp_path / "bad")
    odd = broken(config(architecture="x86_64"), tmp_path / "odd")
    assert cli("image", "validate", good) == (0, "", f"{good}: no findings\n")
    code, out, _err = cli("image", "validate", good, bad)
    assert code == 1
    assert re.search(r"error: sha256:\w{64}: .* \[diff-id\]", out)
    assert cli("image", "validate", odd)[0] == 0
    assert cli("image", "validate", "--strict", odd)[0] == 1
    assert cli("image", "validate", "--fast", bad)[0] == 0
    told = json.loads(cli("image", "validate", "--json", bad)[1])
    assert told[0]["image"] == bad
    assert {finding["rule"] for finding in told[0]["findings"]} == {"diff-id"}
    assert {*told[0]["findings"][0]} == {"level", "rule", "where", "at", "why", "specification"}


def test_the_page_has_every_rule() -> None:
    rows = {
        match[1]: match[0]
        for match in re.finditer(r"^\| `([a-z-]+)` \|.*$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert list(rows) == list(RULES)
    for name, rule in RULES.items():
        assert rule.sentence in rows[name], name
        assert rule.page in rows[name], name
        assert f"| {rule.level} |" in rows[name], name


def test_hashes_are_real() -> None:
    assert hashlib.sha256(mediatypes.EMPTY_BYTES).hexdigest() == mediatypes.EMPTY_DIGEST.partition(":")[2]
