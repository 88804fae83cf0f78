"""The kind vm on a KVM that works: QEMU's emulated processor has AMD's virtualisation, and a guest's kernel uses it.

A guest in a guest takes ten times as long as anywhere else; nothing here is about speed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from knarr.isolation import accel, guest_vm

ISOLATION = Path(__file__).resolve().parent.parent / "isolation"
MODULE = "kvm_amd"

pytestmark = pytest.mark.skipif(
    "KNARR_VM_KVM" not in os.environ, reason="in the guest of make test-vm, for the processor it emulates"
)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """KVM's module loaded, and a cache of knarr's own that says what came of trying KVM."""
    subprocess.run(["modprobe", MODULE], check=True)
    folder = tmp_path_factory.mktemp("kernels")
    for place, target in (("boot", f"vmlinuz-{os.uname().release}"), ("lib/modules", os.uname().release)):
        (folder / place).mkdir(parents=True)
        (folder / place / target).symlink_to(f"/{place}/{target}")
    cache = tmp_path_factory.mktemp("cache")
    return {"KNARR_KERNELS": str(folder), "KNARR_CACHE": str(cache)}


@pytest.fixture(scope="module")
def found(environment: dict[str, str]) -> dict[str, object]:
    """What a container would be made with, once KVM was tried."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.setattr(accel, "PATIENCE", 120.0)  # for a processor that is emulated
        return guest_vm.find_guest({})


def test_it_is_found_to_work(found: dict[str, object]) -> None:
    assert found["accelerator"] == "kvm"


def test_and_not_where_it_does_not_within_its_time(environment: dict[str, str], tmp_path: Path) -> None:
    """The same machine, with a patience no guest can meet: emulation, and why."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.setenv("KNARR_CACHE", str(tmp_path))
        patch.setattr(accel, "PATIENCE", 0.001)
        assert str(guest_vm.find_guest({})["accelerator"]).startswith("tcg")


@pytest.mark.parametrize(
    ("file", "wanted"),
    [
        # Not what compares the guest's kernel with the host's, the same here, or wants an end within some seconds.
        ("test_container.py", "vm and not exit_code and not panics"),
        ("test_vm_section.py", "not tried_once"),
        ("test_ends.py", "vm and (machine_is_killed or its_root_is_full)"),
    ],
)
@pytest.mark.usefixtures("found")
def test_containers(file: str, wanted: str, environment: dict[str, str]) -> None:
    """The black-box tests of the kind, on KVM."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", wanted, str(ISOLATION / file)]
    done = subprocess.run(
        command,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout[-3000:])
    assert done.returncode == 0, done.stdout[-9000:] + done.stderr[-2000:]
