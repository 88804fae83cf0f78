"""linux.mountLabel -> operations: which file systems show it, how it is written, what may not be in it."""

from __future__ import annotations

from typing import Any

import pytest

from knarr.base.errors import SpecError
from knarr.plan.cgroup import CgroupHost, CgroupMount
from knarr.plan.container import ContainerPlan, Options, plan_container
from knarr.plan.host import Host
from knarr.plan.root import Root
from knarr.spec.defaults import default_config

LABEL = "system_u:object_r:container_file_t:s0:c1,c2"
OPTION = f"context={LABEL}"
QUOTED = f'context="{LABEL}"'
HOST = Host(0, 0, "x86_64", (6, 18), False, CgroupHost(mode="v2"), selinux=True)
OWN_IDS = [{"containerID": 0, "hostID": 100000, "size": 65536}]


def labelled(**linux: Any) -> dict[str, Any]:
    config = default_config()
    config["linux"].update(linux, mountLabel=LABEL)
    return config


def with_ids() -> dict[str, Any]:
    config = labelled(uidMappings=OWN_IDS, gidMappings=OWN_IDS)
    config["linux"]["namespaces"].append({"type": "user"})
    return config


def compiled(config: dict[str, Any], root: Root | None = None, host: Host = HOST) -> ContainerPlan:
    return plan_container(config, host, id="c1", bundle="/bundle", options=Options(), root=root)


def host_mounts(plan: ContainerPlan) -> dict[str, str]:
    return {str(op.strs[2]): str(op.strs[3]) for op in plan.ops if op.kind == "host_mount"}


def mounts(plan: ContainerPlan) -> dict[str, tuple[str | bytes, ...]]:
    return {str(op.strs[2]): op.strs[3:] for op in plan.ops if op.kind == "mount"}


@pytest.mark.parametrize("apart", [False, True])
def test_an_overlay_shows_it_and_so_does_its_scratch_layer(apart: bool) -> None:
    root = Root("overlay", "/c/root", ("a", "b"), "/s", scratch="/c/scratch", apart=apart)
    found = host_mounts(compiled(with_ids() if apart else labelled(), root))
    assert found["tmpfs"] == f"mode=700,{QUOTED}"
    assert found["overlay"].endswith(f",workdir=/c/scratch/work,{QUOTED}")


def test_so_do_overlays_made_before_the_user_namespace() -> None:
    config = with_ids()
    overlay = {"destination": "/data", "type": "overlay", "source": "overlay", "options": ["lowerdir=/a,b"]}
    config["mounts"].append(overlay)
    plan = compiled(config, Root("overlay", "/c/root", ("a",), "/s", upper="/u", work="/w", apart=True))
    pointer = f"/mounts/{len(config['mounts']) - 1}"
    (made,) = [op for op in plan.ops if op.kind == "host_mount" and op.pointer == pointer]
    assert made.strs[3] == f"lowerdir=/a\\,b,{QUOTED}"


def test_without_a_label_none_is_written() -> None:
    config = default_config()
    plan = compiled(config, Root("overlay", "/c/root", ("a",), "/s", scratch="/c/scratch"))
    assert "context" not in repr([op.strs for op in plan.ops])


def test_masks_show_it() -> None:
    plan = compiled(labelled(maskedPaths=["/proc/acpi"]))
    assert [op.strs for op in plan.ops if op.kind == "mask"] == [("/proc/acpi", OPTION)]


def test_the_tmpfs_over_cgroups_of_version_1_shows_it() -> None:
    cgroups = CgroupHost(mode="v1", mounts=(CgroupMount(("cpu",), "/sys/fs/cgroup/cpu", "/"),))
    config = labelled()
    config["mounts"].append({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": []})
    found = mounts(compiled(config, host=HOST.replace(cgroup=cgroups)))
    assert found["/sys/fs/cgroup"] == ("mode=755", OPTION)
    assert "/proc" in found
    assert OPTION not in found["/proc"]
    assert OPTION not in found["/sys"]


def test_what_a_user_namespace_may_not_label_is_mounted_without() -> None:
    config = labelled()
    bpf = {"destination": "/bpf", "type": "bpf", "source": "bpf", "options": []}
    config["mounts"].append(bpf)
    assert OPTION in mounts(compiled(config))["/bpf"]
    config = with_ids()
    config["mounts"].append(bpf)
    found = mounts(compiled(config))
    assert OPTION not in found["/bpf"]
    assert OPTION in found["/dev"]
    assert OPTION in found["/dev/pts"]


def test_a_quotation_mark_would_end_the_label() -> None:
    config = labelled()
    config["linux"]["mountLabel"] = 'a:b:c:s0",upperdir="/etc'
    with pytest.raises(SpecError, match=r"/linux/mountLabel.*quotation mark"):
        compiled(config)


@pytest.mark.parametrize("loops", [False, True])
def test_so_does_an_images_index(loops: bool) -> None:
    root = Root("overlay", "/r", ("/i",), "", "/u", "/w", image=("/i", "/index", "/tar"), loops=loops)
    for config, option in ((labelled(), OPTION), (default_config(), "")):
        (made,) = [op for op in compiled(config, root).ops if op.kind in ("new_tree", "loop_tree")]
        if loops:
            assert made.strs == ("erofs", option, "/index", "/tar")
        else:
            assert made.strs == ("erofs", "/index", "device=/tar", *([option] if option else []))
