"""Whatever bytes or JSON values come in: a document, findings, or SpecError; nothing else, and in good time."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spec_documents import read

from knarr.base import fastjson
from knarr.base.errors import SpecError, SpecFinding
from knarr.spec import image_validate, validate
from knarr.spec.defaults import default_config

if TYPE_CHECKING:
    from collections.abc import Callable

HEX = "0123456789abcdef" * 4
DESCRIPTOR = {"mediaType": "application/x", "digest": f"sha256:{HEX}", "size": 5, "data": "aGVsbG8="}
SEEDS: list[Any] = [
    default_config(rootless_ids=(1, 2)),
    read("config-podman.json"),
    {"schemaVersion": 2, "config": DESCRIPTOR, "layers": [DESCRIPTOR], "annotations": {"a": "b"}},
    {"schemaVersion": 2, "manifests": [{**DESCRIPTOR, "platform": {"os": "linux", "architecture": "arm"}}]},
    {
        "os": "linux",
        "architecture": "arm64",
        "created": "2015-10-31T22:22:56Z",
        "config": {"Env": ["A=b"], "Volumes": {"/x": {}}, "StopSignal": "SIGRTMIN+3", "ExposedPorts": {"80/tcp": {}}},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{HEX}"]},
        "history": [{"created": "2015-10-31T22:22:56Z"}],
    },
    {"ociVersion": "1.0.0", "id": "a", "status": "running", "pid": 1, "bundle": "/b"},
    {"ociVersionMin": "1.0.0", "ociVersionMax": "1.3.0", "linux": {"capabilities": ["CAP_X"]}},
]
FINDERS: list[Callable[[Any], list[SpecFinding]]] = [
    validate.shape_findings,
    validate.config_findings,
    validate.process_findings,
    validate.resource_findings,
    validate.state_findings,
    validate.features_findings,
    image_validate.descriptor_findings,
]
PARSERS: list[Callable[[bytes, str], dict[str, Any]]] = [
    validate.parse_config,
    image_validate.parse_manifest,
    image_validate.parse_index,
    image_validate.parse_config,
    image_validate.parse_descriptor,
    image_validate.parse_layout,
]

# Also what only a caller's dict can hold: U+0000 and the bytes of odd file names.
texts = st.text(max_size=6) | st.sampled_from(
    ["/", "..", "a\0", "x\udcff", "net.a", "user", "0-3", "1.0.0", "SIGHUP", "="]
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


def _hit(data: st.DataObject, value: Any, depth: int = 0) -> Any:
    """``value`` with something in it replaced, dropped or added."""
    if isinstance(value, dict) and value and depth < 6 and data.draw(st.integers(0, 9)):
        name = data.draw(st.sampled_from(sorted(value)))
        made = dict(value)
        match data.draw(st.integers(0, 7)):
            case 0:
                del made[name]
            case 1:
                made[data.draw(texts)] = data.draw(values)
            case _:
                made[name] = _hit(data, value[name], depth + 1)
        return made
    if isinstance(value, list) and value and depth < 6 and data.draw(st.integers(0, 9)):
        index = data.draw(st.integers(0, len(value) - 1))
        return [*value[:index], _hit(data, value[index], depth + 1), *value[index:]]
    return data.draw(values)


def _check(value: Any) -> None:
    for finder in FINDERS:
        for finding in finder(value):
            assert isinstance(finding, SpecFinding)
            assert finding.pointer == "" or finding.pointer.startswith("/")
            assert finding.why
    try:
        data = json.dumps(value).encode()
    except ValueError:
        return
    refused = SpecError("", [])
    for parser in PARSERS:
        try:
            parsed: dict[str, Any] | None = parser(data, "document")
        except SpecError as error:
            refused = error
            parsed = None
        if parsed is None:
            assert refused.findings
            assert "\n" not in str(refused)
            continue
        if parser is validate.parse_config:
            assert all(isinstance(found, SpecFinding) for found in validate.config_warnings(parsed))
        elif parser is image_validate.parse_manifest:
            assert all(isinstance(found, SpecFinding) for found in image_validate.image_findings(parsed))
            assert image_validate.to_oci(parsed)["layers"] is not None
        elif parser is image_validate.parse_config:
            assert all(isinstance(found, SpecFinding) for found in image_validate.config_warnings(parsed))


@settings(max_examples=150)
@given(values)
def test_any_value(value: Any) -> None:
    _check(value)


@settings(max_examples=300)
@given(st.data())
def test_damaged_documents(data: st.DataObject) -> None:
    value = data.draw(st.sampled_from(SEEDS))
    for _ in range(data.draw(st.integers(1, 3))):
        value = _hit(data, value)
    _check(value)


@settings(max_examples=200)
@given(st.binary(max_size=40), st.data())
def test_any_bytes(junk: bytes, data: st.DataObject) -> None:
    seed = fastjson.dumps(data.draw(st.sampled_from(SEEDS[2:])))
    at = data.draw(st.integers(0, len(seed)))
    cut = data.draw(st.integers(0, 20))
    for document in (junk, seed[:at] + junk + seed[at + cut :]):
        for parser in PARSERS:
            try:
                parser(document, "document")
            except SpecError:
                continue


@pytest.mark.parametrize(
    "config",
    [
        {"mounts": [{"destination": "/x", "type": "tmpfs"}] * 20_000},
        {"linux": {"namespaces": [{"type": "pid"}] * 50_000}},
        {"linux": {"uidMappings": [{"containerID": 0, "hostID": 0, "size": 1}] * 50_000}},
        {"linux": {"resources": {"cpu": {"cpus": "0-99999999999"}}}},
        {"linux": {"resources": {"cpu": {"cpus": "0-8191," * 20_000}}}},
        {"process": {"cwd": "/" + "../" * 100_000, "user": {"additionalGids": [7] * 50_000}}},
        {"linux": {"sysctl": {f"net.a{n}": "1" for n in range(20_000)}}},
        {"linux": {"devices": [{"type": "c", "path": f"/{n}", "major": 1, "minor": 1} for n in range(20_000)]}},
        {
            "linux": {
                "seccomp": {"defaultAction": "SCMP_ACT_LOG", "syscalls": [{"names": ["x"] * 6, "action": "x"}] * 9_000}
            }
        },
    ],
    ids=lambda config: next(iter(config)),
)
def test_large_documents_take_no_time(config: dict[str, Any]) -> None:
    begun = time.process_time()
    validate.config_findings({"ociVersion": "1.0.0", **config})
    assert time.process_time() - begun < 2
