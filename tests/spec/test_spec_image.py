"""spec.image_validate: descriptors, manifests, indexes, configs and layouts, OCI's and Docker's."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

import pytest
from spec_documents import GONE, changed

from knarr.base.errors import SpecError
from knarr.spec import mediatypes as mt
from knarr.spec.image_validate import (
    LIMIT,
    config_warnings,
    descriptor_findings,
    digest_fault,
    image_findings,
    matching_findings,
    parse_config,
    parse_descriptor,
    parse_index,
    parse_layout,
    parse_manifest,
    to_oci,
)

HEX = "0123456789abcdef" * 4
DIGEST = f"sha256:{HEX}"


def desc(media_type: str, **more: Any) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": DIGEST, "size": 5, **more}


MANIFEST: dict[str, Any] = {
    "schemaVersion": 2,
    "mediaType": mt.MANIFEST,
    "config": desc(mt.CONFIG),
    "layers": [desc(mt.LAYER), desc(mt.LAYER_GZIP), desc(mt.LAYER_ZSTD)],
    "annotations": {"a": ""},
}
DOCKER: dict[str, Any] = {
    "schemaVersion": 2,
    "mediaType": mt.DOCKER_MANIFEST,
    "config": desc(mt.DOCKER_CONFIG),
    "layers": [desc(mt.DOCKER_LAYER_GZIP), desc(mt.DOCKER_LAYER_FOREIGN_GZIP, urls=["https://example.com/x"])],
}
INDEX: dict[str, Any] = {
    "schemaVersion": 2,
    "mediaType": mt.INDEX,
    "manifests": [
        desc(mt.MANIFEST, platform={"os": "linux", "architecture": "arm", "variant": "v7"}),
        desc(
            "application/vnd.new+json",
            platform={"os": "../x", "architecture": "", "os.version": "1", "os.features": ["y"]},
        ),
        desc(mt.INDEX, annotations={mt.REF_NAME: "x"}),
    ],
}
DOCKER_LIST: dict[str, Any] = {
    "schemaVersion": 2,
    "mediaType": mt.DOCKER_LIST,
    "manifests": [desc(mt.DOCKER_MANIFEST, platform={"os": "linux", "architecture": "amd64", "features": ["sse4"]})],
}
CONFIG: dict[str, Any] = {
    "created": "2015-10-31T22:22:56.015925234Z",
    "architecture": "amd64",
    "os": "linux",
    "config": {
        "User": "alice:users",
        "ExposedPorts": {"8080/tcp": {}, "53/udp": {}, "9": {}},
        "Env": ["PATH=/bin", "A=", "LD_PRELOAD=/x", "PATH=/usr/bin"],
        "Entrypoint": ["/x"],
        "Cmd": [],
        "Volumes": {"/var/lib": {}, "/etc": {}},
        "WorkingDir": "/w/../x",
        "Labels": {"a": "b\nc", "org.systemd.property.x": "y"},
        "StopSignal": "SIGRTMIN+3",
        "Healthcheck": {"Test": ["CMD", "x"], "Interval": 30_000_000_000, "Retries": 3},
        "Shell": ["/bin/sh", "-c"],
    },
    "rootfs": {"type": "layers", "diff_ids": [DIGEST, DIGEST, DIGEST]},
    "history": [{"created_by": f"step {n}", "empty_layer": True} for n in range(9)],
    "container_config": {"Cmd": None},
}


def pointers(parse: Any, document: Any, *more: Any) -> list[str]:
    with pytest.raises(SpecError) as caught:
        parse(json.dumps(document).encode(), "the document", *more)
    assert str(caught.value).startswith("the document ")
    return [found.pointer for found in caught.value.findings]


@pytest.mark.parametrize(
    ("parse", "document"),
    [
        (parse_manifest, MANIFEST),
        (parse_manifest, DOCKER),
        (parse_manifest, changed(MANIFEST, {"/mediaType": GONE, "/new": [1], "/layers/0/new": {}})),
        (parse_manifest, changed(MANIFEST, {"/layers": []})),  # umoci's new image
        (parse_manifest, changed(MANIFEST, {"/layers": [desc(mt.LAYER)] * 127})),
        (
            parse_manifest,
            changed(
                MANIFEST,
                {"/config": desc("application/x"), "/artifactType": "application/y", "/subject": desc(mt.MANIFEST)},
            ),
        ),
        (parse_manifest, changed(MANIFEST, {"/layers/0/digest": "foo+b64u:ab-_="})),
        (parse_manifest, changed(MANIFEST, {"/layers/0/digest": "sha512:" + HEX * 2})),
        (parse_index, INDEX),
        (parse_index, DOCKER_LIST),
        (parse_index, changed(INDEX, {"/manifests": [], "/subject": desc(mt.MANIFEST)})),
        (parse_config, CONFIG),
        (parse_config, {"architecture": "", "os": "", "rootfs": {"type": "layers", "diff_ids": []}}),
        (parse_config, changed(CONFIG, {"/config": None, "/history": None, "/created": None, "/os.features": None})),
        (parse_config, changed(CONFIG, {"/config": dict.fromkeys(CONFIG["config"])})),
        (
            parse_config,
            changed(CONFIG, {"/config/StopSignal": "", "/config/WorkingDir": "", "/created": "0001-01-01T00:00:00Z"}),
        ),
        (parse_layout, {"imageLayoutVersion": "1.0.0", "more": 1}),
        (parse_descriptor, desc(mt.CONFIG)),
    ],
)
def test_accepted_as_written(parse: Any, document: Any) -> None:
    assert parse(json.dumps(document).encode(), "document") == document


def test_a_list_that_go_wrote_as_null_is_empty() -> None:
    assert parse_index(b'{"schemaVersion":2,"manifests":null}') == {"schemaVersion": 2, "manifests": []}
    assert parse_manifest(json.dumps(changed(MANIFEST, {"/layers": None})).encode())["layers"] == []
    empty = {"architecture": "a", "os": "l", "rootfs": {"type": "layers", "diff_ids": None}}
    assert parse_config(json.dumps(empty).encode())["rootfs"]["diff_ids"] == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"": []}, [""]),
        ({"": None}, [""]),
        ({"/schemaVersion": GONE}, ["/schemaVersion"]),
        ({"/schemaVersion": 3}, ["/schemaVersion"]),
        ({"/schemaVersion": "2"}, ["/schemaVersion"]),
        ({"/schemaVersion": True}, ["/schemaVersion"]),
        ({"/schemaVersion": 2.0}, ["/schemaVersion"]),
        ({"/mediaType": mt.INDEX}, ["/mediaType"]),
        ({"/mediaType": "x"}, ["/mediaType", "/mediaType"]),
        ({"/mediaType": ["x"]}, ["/mediaType"]),
        ({"/config": GONE}, ["/config"]),
        (
            {"/config/mediaType": GONE, "/layers/1/size": GONE, "/layers/2/digest": GONE},
            ["/config/mediaType", "/layers/1/size", "/layers/2/digest"],
        ),
        ({"/config/size": -1}, ["/config/size"]),
        ({"/config/size": True}, ["/config/size"]),
        ({"/config/size": 2**63}, ["/config/size"]),
        ({"/config/Digest": DIGEST}, ["/config/Digest"]),
        ({"/layers": GONE}, ["/layers"]),
        ({"/layers": {}}, ["/layers"]),
        ({"/layers": [desc(mt.LAYER)] * 128}, ["/layers"]),
        ({"/layers/0/urls": ["x", 1]}, ["/layers/0/urls/1"]),
        ({"/layers/0/annotations": {"a": 1}}, ["/layers/0/annotations/a"]),
        ({"/layers/0/platform": {"os": "linux"}}, ["/layers/0/platform/architecture"]),
        ({"/artifactType": "x"}, ["/artifactType"]),
        ({"/subject": {}}, ["/subject/mediaType", "/subject/digest", "/subject/size"]),
        ({"/annotations": {"a": None}}, ["/annotations/a"]),
        ({"/annotations": None}, ["/annotations"]),
        # two documents in one (CVE-2021-41190)
        ({"/manifests": []}, ["/manifests"]),
        ({"/Manifests": []}, ["/Manifests"]),
        ({"/fsLayers": [], "/history": [], "/signatures": []}, ["/fsLayers", "/history", "/signatures"]),
        ({"/Layers": [], "/CONFIG": {}, "/MediaType": ""}, ["/Layers", "/CONFIG", "/MediaType"]),
    ],
)
def test_manifests_refused(changes: dict[str, Any], expected: list[str]) -> None:
    assert pointers(parse_manifest, changed(MANIFEST, changes)) == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"": "x"}, [""]),
        ({"/manifests": GONE}, ["/manifests"]),
        ({"/mediaType": mt.MANIFEST}, ["/mediaType"]),
        ({"/manifests/0/platform": {"os": 1}}, ["/manifests/0/platform/os", "/manifests/0/platform/architecture"]),
        ({"/manifests/0/size": -1}, ["/manifests/0/size"]),
        ({"/layers": []}, ["/layers"]),
        ({"/config": {}, "/FSLayers": 1}, ["/config", "/FSLayers"]),
        ({"/MANIFESTS": []}, ["/MANIFESTS"]),
    ],
)
def test_indexes_refused(changes: dict[str, Any], expected: list[str]) -> None:
    assert pointers(parse_index, changed(INDEX, changes)) == expected


@pytest.mark.parametrize(
    "document",
    [
        {"schemaVersion": 1, "name": "x", "fsLayers": [], "history": [], "signatures": []},
        {"schemaVersion": 1},
        {"schemaVersion": 2, "mediaType": mt.DOCKER_SCHEMA1_SIGNED},
        {"mediaType": mt.DOCKER_SCHEMA1},
    ],
)
@pytest.mark.parametrize("parse", [parse_manifest, parse_index])
def test_schema_1_is_called_by_its_name(document: Any, parse: Any) -> None:
    with pytest.raises(SpecError, match="schema 1") as caught:
        parse(json.dumps(document).encode(), "manifest")
    assert [found.pointer for found in caught.value.findings] == ["/schemaVersion"]


def test_the_announced_type_and_the_documents_own_must_agree() -> None:
    data = json.dumps(MANIFEST).encode()
    assert parse_manifest(data, "m", mt.MANIFEST) == MANIFEST
    bare = changed(MANIFEST, {"/mediaType": GONE})
    assert parse_manifest(json.dumps(bare).encode(), "m", mt.DOCKER_MANIFEST) == bare
    assert pointers(parse_manifest, MANIFEST, mt.DOCKER_MANIFEST) == ["/mediaType"]
    assert pointers(parse_manifest, bare, mt.INDEX) == [""]
    assert pointers(parse_manifest, MANIFEST, mt.INDEX) == ["/mediaType", ""]
    assert pointers(parse_index, INDEX, mt.DOCKER_LIST) == ["/mediaType"]
    assert pointers(parse_index, changed(INDEX, {"/mediaType": GONE}), mt.MANIFEST) == [""]


@pytest.mark.parametrize("parse", [parse_manifest, parse_index, parse_config, parse_layout, parse_descriptor])
def test_four_mebibytes_are_read_and_no_more(parse: Any) -> None:
    documents = {
        parse_manifest: MANIFEST,
        parse_index: INDEX,
        parse_config: CONFIG,
        parse_layout: {"imageLayoutVersion": "1.0.0"},
        parse_descriptor: desc(mt.CONFIG),
    }
    data = json.dumps(documents[parse]).encode()
    assert parse(data + b" " * (LIMIT - len(data)), "document")
    with pytest.raises(SpecError, match="at most 4194304 are read"):
        parse(data + b" " * (LIMIT - len(data) + 1), "document")
    with pytest.raises(SpecError, match="occurs twice"):
        parse(data[:-1] + b',"x":1,"x":2}', "document")


@pytest.mark.parametrize(
    ("digest", "why"),
    [
        ("", "no algorithm"),
        ("sha256", "no algorithm"),
        (":" + HEX, "not the name of an algorithm"),
        ("sha256:", "nothing after the colon"),
        ("SHA256:" + HEX, "not the name of an algorithm"),
        ("sha256:" + HEX.upper(), "64 lower-case hexadecimal digits"),
        ("sha256:" + HEX[:-1], "64 lower-case"),
        ("sha256:" + HEX + "0", "64 lower-case"),
        ("sha256:../../x", "no encoding uses"),
        ("sha256:aa/bb", "no encoding uses"),
        (DIGEST + "\n", "no encoding uses"),
        ("sha256:" + "٠" * 64, "no encoding uses"),
        ("sha512:" + HEX, "128 lower-case"),
        ("blake3:x", "64 lower-case"),
        ("md5:" + HEX[:32], "is broken"),
        ("sha1:" + HEX[:40], "is broken"),
        ("a..b:x", "not the name"),
        ("a+:x", "not the name"),
        ("../x", "no algorithm"),
        ("foo:" + "a" * 10_000, "is longer than 255"),
    ],
)
def test_digests_refused(digest: str, why: str) -> None:
    assert why in digest_fault(digest)
    assert [found.pointer for found in descriptor_findings(desc(mt.LAYER, digest=digest))] == ["/digest"]


@pytest.mark.parametrize(
    "digest", [DIGEST, "sha512:" + HEX * 2, "blake3:" + HEX, "foo:abc", "sha256+b64u:LCa0a2j_xo-=", "a.b_c-d:Z"]
)
def test_digests_that_may_be_carried(digest: str) -> None:
    assert digest_fault(digest) == ""


@pytest.mark.parametrize(
    "media_type",
    ["", "x", "a/", "/b", "a/b/c", "a b/c", "a/b;c=d", "a/" + "b" * 128, "ä/b", ".a/b", "a/b\n", "application/x\0"],
)
def test_media_types_refused(media_type: str) -> None:
    assert [found.pointer for found in descriptor_findings(desc(media_type))] == ["/mediaType"]


def test_embedded_content_is_checked() -> None:
    content = b"hello"
    good = {
        "mediaType": "text/plain",
        "size": 5,
        "digest": f"sha256:{hashlib.sha256(content).hexdigest()}",
        "data": base64.b64encode(content).decode(),
    }
    assert descriptor_findings(good) == []
    sha512 = f"sha512:{hashlib.sha512(content).hexdigest()}"
    assert descriptor_findings({**good, "digest": sha512}) == []
    assert descriptor_findings({**good, "digest": "foo:bar"}) == []  # nobody can check it
    for changes, why in (
        ({"data": "aGVsbG8"}, "is not base64"),
        ({"data": "aGVs bG8="}, "is not base64"),
        ({"data": "ä"}, "is not base64"),
        ({"data": "aGVsbG8h"}, "holds 6 bytes, but size says 5"),
        ({"data": "aGVsbGE="}, "has another digest"),
        ({"digest": sha512[:-1] + ("0" if sha512[-1] != "0" else "1")}, "has another digest"),
    ):
        found = descriptor_findings({**good, **changes})
        assert [each.pointer for each in found] == ["/data"]
        assert why in found[0].why


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"": []}, [""]),
        ({"/architecture": GONE, "/os": GONE}, ["/architecture", "/os"]),
        ({"/os": None}, ["/os"]),
        ({"/rootfs": GONE}, ["/rootfs"]),
        ({"/rootfs/type": "other"}, ["/rootfs/type"]),
        ({"/rootfs/type": GONE, "/rootfs/diff_ids": GONE}, ["/rootfs/type", "/rootfs/diff_ids"]),
        ({"/rootfs/diff_ids/1": "sha256:x"}, ["/rootfs/diff_ids/1"]),
        ({"/created": "yesterday"}, ["/created"]),
        ({"/history/3/created": "2015-02-30T00:00:00Z"}, ["/history/3/created"]),
        ({"/history/0/empty_layer": 1}, ["/history/0/empty_layer"]),
        ({"/history": {}}, ["/history"]),
        ({"/config": []}, ["/config"]),
        ({"/config/Env": ["NOEQ", "*", "=x", "A=b", ""]}, [f"/config/Env/{n}" for n in (0, 1, 2, 4)]),
        ({"/config/Env": ["A=" + "x" * (128 << 10)]}, ["/config/Env/0"]),
        ({"/config/Env": "A=b"}, ["/config/Env"]),
        ({"/config/Env": [None]}, ["/config/Env/0"]),
        ({"/config/Entrypoint": "sh", "/config/Cmd": [1]}, ["/config/Entrypoint", "/config/Cmd/0"]),
        (
            {"/config/Volumes": {p: {} for p in ("/", "//", "/proc", "/sys/x", "/dev", "../x", "x", "/a/..")}},
            [
                "/config/Volumes/~1",
                "/config/Volumes/~1~1",
                "/config/Volumes/~1proc",
                "/config/Volumes/~1sys~1x",
                "/config/Volumes/~1dev",
                "/config/Volumes/..~1x",
                "/config/Volumes/x",
                "/config/Volumes/~1a~1..",
            ],
        ),
        ({"/config/Volumes": ["/x"]}, ["/config/Volumes"]),
        ({"/config/Volumes": {"/x": 1}}, ["/config/Volumes/~1x"]),
        ({"/config/WorkingDir": "app"}, ["/config/WorkingDir"]),
        ({"/config/WorkingDir": "../x"}, ["/config/WorkingDir"]),
        ({"/config/User": "a\nb"}, ["/config/User"]),
        ({"/config/Labels": {"a": 1}}, ["/config/Labels/a"]),
        ({"/config/Labels": []}, ["/config/Labels"]),
        ({"/config/StopSignal": "SIGFOO"}, ["/config/StopSignal"]),
        ({"/config/StopSignal": "65"}, ["/config/StopSignal"]),
        ({"/config/StopSignal": 9}, ["/config/StopSignal"]),
        ({"/config/StopTimeout": -2}, ["/config/StopTimeout"]),
        ({"/config/ExposedPorts": {"80": 1}}, ["/config/ExposedPorts/80"]),
        ({"/config/ArgsEscaped": "x"}, ["/config/ArgsEscaped"]),
        ({"/config/Shell": "sh"}, ["/config/Shell"]),
        (
            {"/config/Healthcheck": {"Test": "x", "Interval": -1, "Timeout": 2**63, "Retries": 1.5}},
            [f"/config/Healthcheck/{n}" for n in ("Test", "Interval", "Timeout", "Retries")],
        ),
    ],
)
def test_configs_refused(changes: dict[str, Any], expected: list[str]) -> None:
    assert pointers(parse_config, changed(CONFIG, changes)) == expected


def test_nul_is_refused_everywhere() -> None:
    data = json.dumps(changed(CONFIG, {"/config/Labels": {"a": "x\0"}})).encode()
    with pytest.raises(SpecError, match=r"/config/Labels/a: a string holds U\+0000"):
        parse_config(data)


def test_ports_that_are_none_are_ignored_with_a_warning() -> None:
    ports = ["99999/tcp", "80/foo", "1-70000", "0", "", "x/tcp", "80/"]
    config = parse_config(
        json.dumps(
            changed(CONFIG, {"/config/ExposedPorts": {port: {} for port in [*ports, "80/sctp", "65535"]}})
        ).encode()
    )
    assert [found.why for found in config_warnings(config)] == [f"{port!r} is no port" for port in ports]
    assert config_warnings(changed(CONFIG, {"/config": None})) == []


@pytest.mark.parametrize(
    "changes", [{"/imageLayoutVersion": "1.1.0"}, {"/imageLayoutVersion": 1}, {"/imageLayoutVersion": GONE}]
)
def test_layouts_refused(changes: dict[str, Any]) -> None:
    assert pointers(parse_layout, changed({"imageLayoutVersion": "1.0.0"}, changes)) == ["/imageLayoutVersion"]


def test_which_manifests_are_images() -> None:
    assert image_findings(MANIFEST) == []
    assert image_findings(DOCKER) == []
    artifact = changed(
        MANIFEST,
        {"/config/mediaType": mt.EMPTY, "/artifactType": "application/vnd.x", "/layers/0/mediaType": "text/plain"},
    )
    found = image_findings(artifact)
    assert [each.pointer for each in found] == ["/config/mediaType", "/layers/0/mediaType"]
    assert "this is no image but an artifact, 'application/vnd.x'" in found[0].why
    found = image_findings(changed(MANIFEST, {"/layers/1/mediaType": mt.LAYER_GZIP + "+encrypted"}))
    assert [each.why.rpartition(" ")[2] for each in found] == ["encrypted"]


def test_each_layer_has_its_diff_id() -> None:
    assert matching_findings(MANIFEST, CONFIG) == []
    found = matching_findings(MANIFEST, changed(CONFIG, {"/rootfs/diff_ids": []}))
    assert [str(each) for each in found] == ["/rootfs/diff_ids: has 0 items, but the manifest has 3 layers"]


def test_dockers_types_by_their_oci_names() -> None:
    made = to_oci(DOCKER)
    assert made["mediaType"] == mt.MANIFEST
    assert made["config"]["mediaType"] == mt.CONFIG
    assert [layer["mediaType"] for layer in made["layers"]] == [mt.LAYER_GZIP, mt.LAYER_FOREIGN_GZIP]
    assert made["layers"][1]["urls"] == ["https://example.com/x"]
    assert DOCKER["mediaType"] == mt.DOCKER_MANIFEST  # a copy was changed
    assert to_oci(DOCKER_LIST)["manifests"][0] == {**DOCKER_LIST["manifests"][0], "mediaType": mt.MANIFEST}
    assert to_oci(MANIFEST) == MANIFEST
    assert to_oci(INDEX) == INDEX
