"""Our verdict beside that of the OCI's own JSON schemas, on their documents and on damaged ones.

The schemas and documents are looked for in the folder named by KNARR_SPEC_DIR, or in ``shared/spec`` beside the
checkout (``runtime/`` and ``image/``, as the OCI publishes them). Where we differ on purpose, the tables below say so:
STRICTER lists what we refuse and the schema does not know, MILDER what the schema refuses and the specification's
text, or what programs write, asks us to take.
"""

from __future__ import annotations

import copy
import json
import os
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft4Validator  # type: ignore[import-untyped]
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT4
from spec_documents import DOCUMENTS

from knarr.base import fastjson
from knarr.base.errors import SpecError, SpecFinding
from knarr.spec import image_validate, validate

if TYPE_CHECKING:
    from collections.abc import Callable


def _folder() -> Path | None:
    named = os.environ.get("KNARR_SPEC_DIR")
    folder = Path(named) if named else Path(__file__).parents[3] / "shared" / "spec"
    return folder if (folder / "runtime").is_dir() and (folder / "image").is_dir() else None


SPEC = _folder()
pytestmark = pytest.mark.skipif(
    SPEC is None, reason="the OCI's schemas are not here: name their folder in KNARR_SPEC_DIR"
)

# (pointer, reason), both regular expressions: refused by us alone.
STRICTER = {
    "config": [
        (r"/process/rlimits/\d+/type", r"'RLIMIT_"),
        (r"/process/oomScoreAdj", r"must be from -1000 to 1000"),
        (r"/process/ioPriority/priority", r"must be from 0 to 7"),
        (r"/hooks/\w+/\d+/timeout", r"must be from 1 to"),
        (r"/process/execCPUAffinity/(initial|final)", r"is neither|is more than|runs backwards"),
        (r"/(annotations|linux/sysctl|linux/resources/unified)/(\\n)*", r"must be a string"),  # not matched by ".{1,}"
    ],
    "state": [
        (r"/(ociVersion)", r"is not a version"),
        (r"/pid", r"but the container is"),
        (r"/pid", r"must be from 0 to"),
        (r"/id", r"must not be empty"),
        (r"/bundle", r"must be an absolute path"),
        (r"/annotations/(\\n)*", r"must be a string"),
    ],
    "features": [
        (r"/ociVersion(Min|Max)", r"is not a version|later than"),
        (r"/linux/(intelRdt|memoryPolicy).*", r""),
        (r"/annotations/(\\n)*", r"must be a string"),
    ],
    "descriptor": [
        (r"/digest", r"needs \d+ lower-case|is broken|is longer than"),
        (r"/data", r"is not base64|but size says|has another digest"),
        (r"/size", r"must be from 0"),
        (r"/platform.*", r""),
        (r"/.*", r"in other case"),
        (r"/annotations/(\\n)*", r"must be a string"),
    ],
    "manifest": [
        (r"/(config|subject|layers/\d+)/(digest|data|size|platform.*|annotations/)", r""),
        (r"/mediaType", r"is no image manifest"),
        (r"/layers", r"at most 127"),
        (r"/.*", r"in other case|does not belong"),
        (r"/annotations/(\\n)*", r"must be a string"),
    ],
    "index": [
        (r"/(manifests/\d+|subject)/(digest|data|size|annotations/|artifactType)", r""),
        (r"/subject/platform.*", r""),
        (r"/mediaType", r"is no image index"),
        (r"/.*", r"in other case|does not belong"),
        (r"/annotations/(\\n)*", r"must be a string"),
    ],
    "image config": [
        (r"/(created|history/\d+/created)", r"is not an RFC 3339|not a day|not a time|no valid offset|empty fraction|offset"),
        (r"/config/Env/\d+", r"has no|longer than"),
        (r"/config/WorkingDir", r"is not an absolute path"),
        (r"/config/Volumes/.*", r"is not an absolute path|cannot cover|must be an object"),
        (r"/config/StopSignal", r"is no signal"),
        (r"/config/User", r"line break"),
        (r"/config/(Shell|Healthcheck|StopTimeout).*", r""),
        (r"/config/(ExposedPorts|Labels)/(\\n)*", r"must be"),
        (r"/rootfs/diff_ids/\d+", r""),
    ],
    "layout": [],
}  # fmt: skip
# Anywhere: what I-JSON and the kernel's strings do not have.
ALWAYS = [(r".*", r"U\+0000|fits neither int64 nor uint64|is too large for a number")]
# Pointers, as regular expressions: refused by the schema alone.
MILDER = {
    "config": [r"/linux/devices/\d+/fileMode", r"/linux/rootfsPropagation"],
    "state": [r"/status"],
    "features": [],
    "descriptor": [r"/size"],
    "manifest": [r"/layers"],
    "index": [r"/manifests"],
    # config.md: any optional member may be null
    "image config": [r"/(created|author|variant|os\.version|os\.features|config|history|rootfs/diff_ids)", r"/config/\w+", r"/history/\d+/\w+"],
    "layout": [],
}  # fmt: skip

_SCHEMAS = {
    "config": "runtime/config-schema.json",
    "state": "runtime/state-schema.json",
    "features": "runtime/features-schema.json",
    "descriptor": "image/content-descriptor.json",
    "manifest": "image/image-manifest-schema.json",
    "index": "image/image-index-schema.json",
    "image config": "image/config-schema.json",
    "layout": "image/image-layout-schema.json",
}
_BASES = (
    "",
    *(
        f"https://opencontainers.org/schema/{below}"
        for below in ("", "descriptor/", "image/", "image/descriptor/", "image/index/")
    ),
)
_validators: dict[str, Draft4Validator] = {}


def validator(kind: str) -> Draft4Validator:
    if kind not in _validators:
        assert SPEC is not None
        path = SPEC / _SCHEMAS[kind]

        # Known from the start under each name they call each other by: a schema that is fetched is crawled every time.
        known = []
        for other in sorted(path.parent.glob("*.json")):
            resource = Resource.from_contents(json.loads(other.read_bytes()), default_specification=DRAFT4)
            known += [(f"{base}{other.name}", resource) for base in _BASES]
        registry: Registry[Any] = Registry().with_resources(known).crawl()
        _validators[kind] = Draft4Validator(json.loads(path.read_bytes()), registry=registry)
    return _validators[kind]


def schema_refuses(kind: str, document: Any) -> list[str]:
    """Pointers of what the schema does not accept."""
    found = []
    for error in validator(kind).iter_errors(document):
        parts = [str(part) for part in error.absolute_path]
        if error.validator == "required":
            parts.append(str(error.message).split("'")[1])
        found.append("".join("/" + part.replace("~", "~0").replace("/", "~1") for part in parts))
    return found


def _parsed(parse: Callable[[bytes, str], Any]) -> Callable[[Any], list[SpecFinding]]:
    def findings(document: Any) -> list[SpecFinding]:
        try:
            parse(json.dumps(document).encode(), "document")
        except SpecError as error:
            return error.findings
        return []

    return findings


OURS: dict[str, Callable[[Any], list[SpecFinding]]] = {
    "config": validate.shape_findings,
    "state": validate.state_findings,
    "features": validate.features_findings,
    "descriptor": image_validate.descriptor_findings,
    "manifest": _parsed(image_validate.parse_manifest),
    "index": _parsed(image_validate.parse_index),
    "image config": _parsed(image_validate.parse_config),
    "layout": _parsed(image_validate.parse_layout),
}


def compare(kind: str, document: Any) -> None:
    """Fail unless we and the schema agree, or differ only as the tables above allow."""
    ours = OURS[kind](document)
    theirs = schema_refuses(kind, document)
    if theirs and not ours:
        assert all(any(re.fullmatch(milder, pointer) for milder in MILDER[kind]) for pointer in theirs), theirs
    elif ours and not theirs:
        for each in ours:
            assert any(
                re.fullmatch(pointer, each.pointer, re.DOTALL) and re.search(why, each.why)
                for pointer, why in (*STRICTER[kind], *ALWAYS)
            ), each


def _published(kind: str, verdict: str) -> list[Path]:
    return sorted((SPEC / "runtime" / "test" / kind / verdict).glob("*.json")) if SPEC else []


@pytest.mark.parametrize("kind", ["config", "state", "features"])
def test_every_published_good_document_is_accepted(kind: str) -> None:
    paths = _published(kind, "good")
    assert paths
    for path in paths:
        document = fastjson.loads(path.read_bytes(), path.name)
        assert OURS[kind](document) == [] or (kind, path.name) == ("state", "spec-example.json"), path.name
        compare(kind, document)


@pytest.mark.parametrize("kind", ["config", "state", "features"])
def test_every_published_bad_document_is_refused(kind: str) -> None:
    paths = _published(kind, "bad")
    assert paths
    for path in paths:
        try:
            document = fastjson.loads(path.read_bytes(), path.name)
        except SpecError:
            with pytest.raises(ValueError, match=r".+"):
                json.loads(path.read_bytes())
            continue
        assert OURS[kind](document), path.name
        compare(kind, document)


# The published good documents are not all Linux containers of version 1: what a run of each would say.
NOT_RUN_HERE: dict[str, set[str]] = {
    "freebsd-example.json": {"/hostname"},
    "freebsd-minimal.json": {"/process"},
    "linux-netdevice.json": {"/process", "/linux/netDevices"},
    "linux-rdma.json": {"/process"},
    "minimal-for-start.json": set(),
    "minimal.json": {"/process"},
    "spec-example.json": {"/ociVersion"},
    "zos-example.json": {"/ociVersion", "/hostname"},
    "zos-minimal.json": {"/process"},
}


def test_what_keeps_the_published_good_configs_from_running_here() -> None:
    for path in _published("config", "good"):
        document = fastjson.loads(path.read_bytes(), path.name)
        found = {finding.pointer for finding in validate.config_findings(document)}
        assert found == NOT_RUN_HERE[path.name], path.name


# A document with every member of the schemas that the published ones lack.
REST: dict[str, Any] = {
    "ociVersion": "1.3.0",
    "root": {"path": "rootfs", "readonly": True},
    "mounts": [
        {
            "destination": "/x",
            "source": "/y",
            "type": "none",
            "options": ["bind", "idmap"],
            "uidMappings": [{"containerID": 0, "hostID": 1, "size": 2}],
            "gidMappings": [{"containerID": 0, "hostID": 1, "size": 2}],
        }
    ],
    "process": {
        "terminal": True,
        "consoleSize": {"height": 1, "width": 2},
        "commandLine": "x",
        "cwd": "/",
        "user": {"uid": 1, "gid": 2, "umask": 3, "additionalGids": [4], "username": "n"},
        "oomScoreAdj": 5,
        "scheduler": {
            "policy": "SCHED_DEADLINE",
            "nice": 1,
            "priority": 2,
            "flags": ["SCHED_FLAG_RECLAIM"],
            "runtime": 3,
            "deadline": 4,
            "period": 5,
        },
        "ioPriority": {"class": "IOPRIO_CLASS_RT", "priority": 1},
        "execCPUAffinity": {"initial": "0", "final": "1"},
    },
    "annotations": {"a": "b"},
    "linux": {
        "netDevices": {"eth0": {"name": "x"}},
        "mountLabel": "l",
        "maskedPaths": ["/a"],
        "readonlyPaths": ["/b"],
        "intelRdt": {
            "closID": "c",
            "schemata": ["x"],
            "l3CacheSchema": "L3:",
            "memBwSchema": "MB:",
            "enableMonitoring": True,
        },
        "memoryPolicy": {"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"]},
        "personality": {"domain": "LINUX", "flags": []},
        "resources": {
            "unified": {"a": "b"},
            "cpu": {"idle": 1},
            "rdma": {"m": {"hcaHandles": 1, "hcaObjects": 2}},
            "devices": [{"allow": True, "type": "a", "major": 1, "minor": 2, "access": "r"}],
            "blockIO": {
                "throttleReadIOPSDevice": [{"major": 1, "minor": 2, "rate": 3}],
                "throttleWriteBpsDevice": [{"major": 1, "minor": 2, "rate": 3}],
            },
        },
        "seccomp": {
            "defaultAction": "SCMP_ACT_LOG",
            "defaultErrnoRet": 1,
            "flags": ["SECCOMP_FILTER_FLAG_LOG"],
            "listenerPath": "/l",
            "listenerMetadata": "m",
            "architectures": ["SCMP_ARCH_X86"],
            "syscalls": [
                {
                    "names": ["a"],
                    "action": "SCMP_ACT_KILL",
                    "errnoRet": 1,
                    "args": [{"index": 1, "value": 2, "valueTwo": 3, "op": "SCMP_CMP_EQ"}],
                }
            ],
        },
    },
    "vm": {
        "hypervisor": {"path": "/h", "parameters": ["p"]},
        "kernel": {"path": "/k", "parameters": ["p"], "initrd": "/i"},
        "image": {"path": "/i", "format": "raw"},
        "hwConfig": {
            "deviceTree": "/d",
            "vcpus": 1,
            "memory": 2,
            "dtdevs": ["d"],
            "iomems": [{"firstGFN": 1, "firstMFN": 2, "nrMFNs": 3}],
            "irqs": [1],
        },
    },
    "windows": {
        "layerFolders": ["l"],
        "devices": [{"id": "i", "idType": "class"}],
        "resources": {
            "memory": {"limit": 1},
            "cpu": {"count": 1, "shares": 2, "maximum": 3, "affinity": {"mask": 1, "group": 2}},
            "storage": {"iops": 1, "bps": 2, "sandboxSize": 3},
        },
        "network": {
            "endpointList": ["e"],
            "allowUnqualifiedDNSQuery": True,
            "DNSSearchList": ["d"],
            "networkSharedContainerName": "n",
            "networkNamespace": "n",
        },
        "credentialSpec": {},
        "servicing": True,
        "ignoreFlushesDuringBoot": True,
        "hyperv": {"utilityVMPath": "u"},
    },
    "solaris": {
        "milestone": "m",
        "limitpriv": "l",
        "maxShmMemory": "1",
        "cappedCPU": {"ncpus": "1"},
        "cappedMemory": {"physical": "1", "swap": "2"},
        "anet": [{"linkname": "n", "lowerLink": "l", "macAddress": "m"}],
    },
}

HEX = "0123456789abcdef" * 4
DESCRIPTOR: dict[str, Any] = {
    "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
    "digest": f"sha256:{HEX}",
    "size": 5,
    "urls": ["https://example.com/x"],
    "annotations": {"a": "b"},
    "artifactType": "application/x",
}
PLATFORM: dict[str, Any] = {
    "architecture": "arm",
    "os": "linux",
    "variant": "v7",
    "os.version": "1",
    "os.features": ["x"],
}
IMAGE_DOCUMENTS: list[tuple[str, dict[str, Any]]] = [
    ("layout", {"imageLayoutVersion": "1.0.0"}),
    ("descriptor", DESCRIPTOR),
    (
        "manifest",
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "artifactType": "application/y",
            "config": {**DESCRIPTOR, "mediaType": "application/vnd.oci.image.config.v1+json"},
            "layers": [DESCRIPTOR, DESCRIPTOR],
            "subject": DESCRIPTOR,
            "annotations": {"a": "b"},
        },
    ),
    (
        "index",
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "artifactType": "application/y",
            "manifests": [{**DESCRIPTOR, "platform": PLATFORM}],
            "subject": DESCRIPTOR,
            "annotations": {"a": "b"},
        },
    ),
    (
        "image config",
        {
            "created": "2015-10-31T22:22:56.015925234Z",
            "author": "a",
            **PLATFORM,
            "config": {
                "User": "alice",
                "ExposedPorts": {"8080/tcp": {}},
                "Env": ["A=b"],
                "Entrypoint": ["/x"],
                "Cmd": ["y"],
                "Volumes": {"/v": {}},
                "WorkingDir": "/w",
                "Labels": {"l": "m"},
                "StopSignal": "SIGTERM",
                "ArgsEscaped": True,
            },
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{HEX}"]},
            "history": [
                {"created": "2015-10-31T22:22:54Z", "author": "a", "created_by": "b", "comment": "c", "empty_layer": True}
            ],
        },
    ),
]  # fmt: skip


@cache
def _all_documents() -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = [("config", REST), *IMAGE_DOCUMENTS]
    for kind in ("config", "state", "features"):
        found += [(kind, json.loads(path.read_bytes())) for path in _published(kind, "good")]
    return found


@cache
def _own_documents() -> list[tuple[str, Any]]:
    return [("config", json.loads(path.read_bytes())) for path in sorted(DOCUMENTS.glob("config-*.json"))]


def _places(document: Any) -> list[tuple[str | int, ...]]:
    """Paths of every value in a document, the whole first."""
    found: list[tuple[str | int, ...]] = []
    todo: list[tuple[tuple[str | int, ...], Any]] = [((), document)]
    while todo:
        path, value = todo.pop()
        found.append(path)
        if isinstance(value, dict):
            todo += [((*path, name), child) for name, child in value.items()]
        elif isinstance(value, list):
            # Items of one list look alike: the first and the last will do.
            todo += [((*path, index), value[index]) for index in sorted({0, len(value) - 1}) if value]
    return found


_WIDE = ((), ("linux",), ("process",), ("linux", "resources"))


def _thinned(document: Any, path: tuple[str | int, ...]) -> Any:
    """The document without the objects and lists beside ``path`` in its widest objects, so that the schema is quick."""
    for wide in _WIDE:
        if wide == path[: len(wide)] and len(path) > len(wide):
            node = document
            for part in wide:
                node = node[part]
            if isinstance(node, dict):
                keep = {k: v for k, v in node.items() if k == path[len(wide)] or not isinstance(v, (dict, list))}
                document = _replaced(document, wide, keep)
    return document


def _replaced(document: Any, path: tuple[str | int, ...], value: Any) -> Any:
    if not path:
        return value
    made = copy.copy(document)
    made[path[0]] = _replaced(document[path[0]], path[1:], value)
    return made


WRONG: list[Any] = [None, True, 0, -1, 2, 1.5, 2**32, 2**63, 2**64, "", "x", "\n", [], ["x"], [0], {}, {"x": 1}]


@pytest.mark.parametrize("kind", list(_SCHEMAS))
def test_each_member_once_with_each_kind_of_value(kind: str) -> None:
    """Every member of every document, replaced by values of all types: the verdict is the schema's."""
    tried = 0
    for each, document in _all_documents():
        if each == kind:
            compare(kind, document)
            for path in _places(document):
                thin = _thinned(document, path) if kind == "config" else document
                for value in WRONG:
                    compare(kind, _replaced(thin, path, value))
                    tried += 1
    assert tried >= 2 * len(WRONG)


@pytest.mark.parametrize("kind", list(_SCHEMAS))
def test_each_member_missing_once(kind: str) -> None:
    for each, document in _all_documents():
        if each == kind:
            for path in _places(document)[1:]:
                thin = _thinned(document, path) if kind == "config" else document
                parent = thin
                for part in path[:-1]:
                    parent = parent[part]
                without = copy.copy(parent)
                del without[path[-1]]
                compare(kind, _replaced(thin, path[:-1], without))


# No lone surrogates, which no JSON document of ours may hold; otherwise anything.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
words = st.sampled_from(
    (
        "pid time c z RLIMIT_CPU RLIMIT_NEW SCMP_ACT_ALLOW 2MB 02MB 2mB MB:x slave rslave 1.0.0 application/x a/b/c "
        f"sha256:x foo:abc md5:abc layers raw LINUX sha256:{HEX}"
    ).split()
)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64) | st.floats(allow_nan=False) | texts | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=250, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_damaged_documents_get_the_schemas_verdict(data: st.DataObject) -> None:
    kind, document = data.draw(st.sampled_from(_all_documents() + _own_documents()))
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(_places(document)))
        node = document
        for part in path:
            node = node[part]
        if isinstance(node, dict) and data.draw(st.booleans()):
            document = _replaced(document, path, {**node, data.draw(texts): data.draw(values)})
        else:
            document = _replaced(document, path, data.draw(values))
    compare(kind, document)
