"""spec.validate: every rule about config.json, refused with its pointer and reason, and what must not be refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from config_cases import ACCEPTED, BIND, REFUSED
from spec_documents import DOCUMENTS, GONE, changed, read

from knarr.base import fastjson
from knarr.base.errors import SpecError
from knarr.spec import validate
from knarr.spec.defaults import default_config
from knarr.spec.validate import config_findings, config_warnings, parse_config

BASE = default_config()
ROOTLESS = default_config(rootless_ids=(1000, 1000))


@pytest.mark.parametrize(("changes", "pointers", "why"), REFUSED)
def test_refused_with_pointer_and_reason(changes: dict[str, Any], pointers: list[str], why: str) -> None:
    found = config_findings(changed(BASE, changes))
    assert sorted(each.pointer for each in found) == sorted(pointers)
    assert all(why in each.why for each in found), found
    assert all(each.why and "\n" not in each.why for each in found)


@pytest.mark.parametrize("changes", ACCEPTED)
def test_accepted(changes: dict[str, Any]) -> None:
    assert config_findings(changed(BASE, changes)) == []


@pytest.mark.parametrize("path", sorted(DOCUMENTS.glob("config-*.json")), ids=lambda path: path.stem)
def test_what_other_tools_write_is_accepted_whole(path: Path) -> None:
    data = path.read_bytes()
    config = parse_config(data)
    assert config == fastjson.loads(data, path.name)
    for warning in config_warnings(config):  # runc 1.1 and crun 1.8 ask for ambient capabilities in vain
        assert warning.pointer.startswith("/process/capabilities/ambient/")


def test_defaults_and_rootless_defaults_are_accepted_without_warning() -> None:
    for config in (BASE, ROOTLESS, default_config(cgroup_namespace=True)):
        assert config_findings(config) == []
        assert config_warnings(config) == []


def test_all_findings_come_at_once() -> None:
    config = changed(
        BASE,
        {
            "/ociVersion": "2.0.0",
            "/process/cwd": "x",
            "/process/env": [1, "x"],
            "/mounts/0/destination": 3,
            "/linux/namespaces/-": {"type": "pid"},
            "/linux/resources/pids": {"limit": "x"},
            "/hooks": {"prestart": [{"path": "x"}]},
        },
    )
    with pytest.raises(SpecError) as caught:
        parse_config(fastjson.dumps(config), "config.json")
    assert [found.pointer for found in caught.value.findings] == [
        "/process/env/0",
        "/mounts/0/destination",
        "/linux/resources/pids/limit",
        "/ociVersion",
        "/process/cwd",
        "/hooks/prestart/0/path",
        "/linux/namespaces/5/type",
    ]
    assert str(caught.value).startswith("config.json /process/env/0: must be a string, not an integer; ")


def test_unknown_members_survive_and_nothing_is_changed() -> None:
    config = changed(BASE, {"/com.example": {"deep": [1, {"x": None}]}, "/linux/new": "y"})
    data = fastjson.dumps(config)
    assert parse_config(data) == config
    assert fastjson.dumps(parse_config(data)) == data


def test_a_process_is_needed_to_start_but_not_to_create() -> None:
    config = changed(BASE, {"/process": GONE})
    assert [found.pointer for found in config_findings(config)] == ["/process"]
    assert config_findings(config, need_process=False) == []
    assert parse_config(fastjson.dumps(config), need_process=False) == config


def test_parse_names_the_document_and_bounds_its_size() -> None:
    with pytest.raises(SpecError, match=r"^x/config.json .*line 1 column 1"):
        parse_config(b"x", "x/config.json")
    with pytest.raises(SpecError, match="at most 16777216 are read"):
        parse_config(b" " * (16 << 20) + b"{}")


@pytest.mark.parametrize(
    ("changes", "pointers"),
    [
        ({"/ociVersion": "1.4.0"}, ["/ociVersion"]),
        ({"/ociVersion": "1.3.7-dev"}, []),
        ({"/mounts/-": {**BIND, "destination": "rel"}}, ["/mounts/7/destination"]),
        ({"/process/user/username": "bob"}, ["/process/user/username"]),
        (
            {"/process/capabilities/bounding": ["CAP_NEW", "cap_kill", "CAP_KILL"]},
            ["/process/capabilities/bounding/0", "/process/capabilities/bounding/1"],
        ),
        ({"/process/capabilities/ambient": ["CAP_KILL"]}, ["/process/capabilities/ambient/0"]),
        ({"/process/capabilities/ambient": ["CAP_KILL"], "/process/capabilities/inheritable": ["CAP_KILL"]}, []),
        (
            {"/process/capabilities/ambient": ["CAP_CHOWN"], "/process/capabilities/inheritable": ["CAP_CHOWN"]},
            ["/process/capabilities/ambient/0"],
        ),
        ({"/linux": GONE, "/hostname": GONE}, ["/linux/namespaces"]),
    ],
)
def test_warnings(changes: dict[str, Any], pointers: list[str]) -> None:
    config = changed(BASE, changes)
    assert config_findings(config) == []
    assert [found.pointer for found in config_warnings(config)] == pointers


def test_a_process_of_its_own_for_exec() -> None:
    process = BASE["process"]
    assert validate.process_findings(process) == []
    found = validate.process_findings(changed(process, {"/args": [], "/cwd": "x", "/user/uid": 2**32 - 1, "/env": [1]}))
    assert sorted(each.pointer for each in found) == ["/args", "/cwd", "/env/0", "/user/uid"]
    assert [each.pointer for each in validate.process_findings([])] == [""]


def test_resources_of_their_own_for_update() -> None:
    assert validate.resource_findings({"memory": {"limit": 5}, "pids": {"limit": 0}}) == []
    found = validate.resource_findings({"memory": {"swap": 5}, "cpu": {"shares": 1}, "unified": {"a/b": ""}})
    assert sorted(each.pointer for each in found) == ["/cpu/shares", "/memory/swap", "/unified/a~1b"]
    assert [each.pointer for each in validate.resource_findings({"pids": []})] == ["/pids"]
    assert [each.pointer for each in validate.resource_findings(None)] == [""]


STATE = {"ociVersion": "1.3.0", "id": "a", "status": "running", "pid": 5, "bundle": "/b"}


@pytest.mark.parametrize(
    ("changes", "pointers"),
    [
        ({}, []),
        ({"/status": "paused", "/annotations": {}, "/extra": 1}, []),
        ({"/status": "stopped", "/pid": GONE}, []),
        ({"/status": "stopped", "/pid": 0}, []),
        ({"/status": "creating", "/pid": GONE}, []),
        ({"": None}, [""]),
        ({"": {}}, ["/ociVersion", "/id", "/status", "/bundle"]),
        ({"/ociVersion": "1"}, ["/ociVersion"]),
        ({"/status": "dead"}, ["/status"]),
        ({"/status": []}, ["/status"]),
        ({"/pid": GONE}, ["/pid"]),
        ({"/pid": 0}, ["/pid"]),
        ({"/pid": -1}, ["/pid"]),
        ({"/id": ""}, ["/id"]),
        ({"/bundle": "b"}, ["/bundle"]),
        ({"/annotations": {"a": 1}}, ["/annotations/a"]),
    ],
)
def test_state_documents(changes: dict[str, Any], pointers: list[str]) -> None:
    assert [found.pointer for found in validate.state_findings(changed(STATE, changes))] == pointers


FEATURES = {"ociVersionMin": "1.0.0", "ociVersionMax": "1.3.0"}


@pytest.mark.parametrize(
    ("changes", "pointers"),
    [
        ({}, []),
        (
            {
                "/linux": {
                    "namespaces": ["time"],
                    "capabilities": ["CAP_CHOWN"],
                    "seccomp": {"archs": ["SCMP_ARCH_X86"]},
                }
            },
            [],
        ),
        ({"/linux": {"memoryPolicy": {"modes": ["MPOL_BIND"], "flags": []}, "intelRdt": {"schemata": True}}}, []),
        ({"": 1}, [""]),
        ({"/ociVersionMin": GONE}, ["/ociVersionMin"]),
        ({"/ociVersionMax": "x"}, ["/ociVersionMax"]),
        ({"/ociVersionMin": "1.4.0"}, ["/ociVersionMin"]),
        ({"/hooks": "x"}, ["/hooks"]),
        (
            {"/linux": {"namespaces": ["x"], "capabilities": ["CAP_", "cap_x", 1]}},
            ["/linux/namespaces/0", "/linux/capabilities/0", "/linux/capabilities/1", "/linux/capabilities/2"],
        ),
        (
            {"/linux": {"cgroup": {"v1": 1}, "mountExtensions": {"idmap": True}}},
            ["/linux/cgroup/v1", "/linux/mountExtensions/idmap"],
        ),
    ],
)
def test_features_documents(changes: dict[str, Any], pointers: list[str]) -> None:
    assert [found.pointer for found in validate.features_findings(changed(FEATURES, changes))] == pointers


# What a hot module may load beside knarr's own.
ALLOWED = {"_json", "os", "os.path", "posixpath", "genericpath", "stat", "_stat", "_collections_abc", "__future__"}


def test_validation_loads_only_what_the_hot_path_may() -> None:
    src = str(Path(validate.__file__).parents[2])
    path = str(DOCUMENTS / "config-docker.json")
    code = (
        f"import sys; before = set(sys.modules); sys.path.insert(0, {src!r})\n"
        "from knarr.spec import validate, defaults, mediatypes, state, signals\n"
        f"validate.config_warnings(validate.parse_config(open({path!r}, 'rb').read()))\n"
        "print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert {name for name in loaded if not name.startswith("knarr")} <= ALLOWED
    assert not loaded & {"knarr.spec.platforms", "knarr.spec.runtime_types", "knarr.spec.image_validate"}


def test_the_documents_of_this_folder_are_real() -> None:
    """They come from the tools themselves; a filter of several hundred names is what makes them worth timing."""
    profile = read("config-docker.json")["linux"]["seccomp"]
    assert sum(len(entry["names"]) for entry in profile["syscalls"]) > 300
