"""spec.defaults, spec.capabilities, spec.mediatypes, spec.state: data that others rely on."""

from __future__ import annotations

import hashlib
import re

import pytest
from spec_documents import read

from knarr.spec import mediatypes
from knarr.spec.capabilities import CAPABILITIES
from knarr.spec.defaults import default_config
from knarr.spec.runtime import OCI_VERSION, STATUSES
from knarr.spec.state import state_document
from knarr.spec.validate import state_findings


@pytest.mark.parametrize(("name", "ids"), [("config-runc.json", None), ("config-runc-rootless.json", (0, 0))])
def test_the_default_is_what_runc_spec_writes(name: str, ids: tuple[int, int] | None) -> None:
    written = read(name)
    ours = default_config(rootless_ids=ids)
    # The newest runc gives no ambient capabilities any more, and we name the version we follow.
    assert written["process"]["capabilities"].pop("ambient")
    assert written.pop("ociVersion") == "1.0.2-dev"
    assert ours.pop("ociVersion") == OCI_VERSION
    assert ours == written
    assert list(ours) == list(written)


def test_each_default_is_a_new_document() -> None:
    one = default_config(rootless_ids=(1000, 100))
    one["mounts"][3]["options"].append("x")
    one["process"]["capabilities"]["bounding"].append("x")
    one["linux"]["maskedPaths"].clear()
    two = default_config(rootless_ids=(1000, 100))
    assert two["linux"]["uidMappings"] == [{"containerID": 0, "hostID": 1000, "size": 1}]
    assert two["linux"]["gidMappings"] == [{"containerID": 0, "hostID": 100, "size": 1}]
    assert "x" not in two["mounts"][3]["options"]
    assert "x" not in one["mounts"][4]["options"]
    assert "x" not in two["process"]["capabilities"]["bounding"]
    assert len(two["linux"]["maskedPaths"]) == 10


def test_a_cgroup_namespace_when_asked_for() -> None:
    assert {"type": "cgroup"} in default_config(cgroup_namespace=True)["linux"]["namespaces"]
    assert {"type": "cgroup"} not in default_config()["linux"]["namespaces"]


def test_capabilities_are_the_kernels() -> None:
    assert CAPABILITIES["CAP_CHOWN"] == 0
    assert CAPABILITIES["CAP_SYS_ADMIN"] == 21
    assert CAPABILITIES["CAP_CHECKPOINT_RESTORE"] == 40
    assert list(CAPABILITIES.values()) == list(range(41))
    with open("/proc/sys/kernel/cap_last_cap") as last:
        assert int(last.read()) <= 40  # a newer kernel has one more: add it


def test_media_types() -> None:
    names = [
        value for name, value in vars(mediatypes).items() if isinstance(value, str) and value.startswith("application/")
    ]
    assert len(set(names)) == len(names) > 20
    assert set(mediatypes.TO_OCI) == {name for name in names if ".docker." in name} - mediatypes.SCHEMA1
    for docker, oci in mediatypes.TO_OCI.items():
        assert mediatypes.LAYERS.get(docker) == mediatypes.LAYERS.get(oci)
        assert (docker in mediatypes.FOREIGN_LAYERS) == (oci in mediatypes.FOREIGN_LAYERS)
        assert mediatypes.TO_DOCKER[oci] == docker
    for layer, compression in mediatypes.LAYERS.items():
        assert compression == (re.findall(r"(?:tar[.+])(gzip|zstd)$", layer) or [""])[0]
    assert f"sha256:{hashlib.sha256(mediatypes.EMPTY_BYTES).hexdigest()}" == mediatypes.EMPTY_DIGEST


@pytest.mark.parametrize("status", STATUSES)
def test_state_documents(status: str) -> None:
    state = state_document("abc", status, "/bundle", pid=7, annotations={"a": "b"})
    assert list(state) == ["ociVersion", "id", "status", "pid", "bundle", "annotations"]
    assert state_findings(state) == []
    assert state["annotations"] == {"a": "b"}


def test_a_stopped_container_has_no_pid() -> None:
    state = state_document("abc", "stopped", "/bundle")
    assert state == {"ociVersion": OCI_VERSION, "id": "abc", "status": "stopped", "bundle": "/bundle"}
    assert state_findings(state) == []
