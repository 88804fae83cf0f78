"""The kind ``vm`` as kinds.py wants it: a guest in a microVM of QEMU's (cold)."""

from __future__ import annotations

import os

from knarr.base.errors import FileError, KnarrError, Unsupported
from knarr.base.files import read_file, write_all
from knarr.isolation import accel, kernels, qemu, vm, vmconfig
from knarr.isolation.initramfs import initramfs
from knarr.isolation.kinds import Booting, Mounted, Settings
from knarr.isolation.uml import Share
from knarr.runtime.launch import init_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

OVERHEAD = 96 << 20
"""Its kernel, page tables, the initramfs, and the pages of a root's overlay."""
BESIDE = 192 << 20
"""What QEMU and virtiofsd take beside the guest's memory; translated code is most of it."""
_SHARED = "/run/shares"
_MS_BIND = 0x1000
_SMALLEST = 128 << 20
_PATIENCE = 30.0
_INITRD_LIMIT = 256 << 20


def find_guest(config: dict[str, Any]) -> dict[str, Any]:
    """QEMU, virtiofsd and the kernel of this machine or of config.json, and whether KVM works.

    Raises Unsupported, FileError.
    """
    asked = vmconfig.wanted(config.get("vm"))
    hypervisor = _of("/vm/hypervisor/path" if asked.hypervisor else "", qemu.find, os.environ, asked.hypervisor)
    qemu.find_helper(os.environ)
    try:
        cache = accel.cache_directory()
    except KnarrError:
        cache = ""  # it takes longer, each time
    path = asked.kernel or kernels.find()
    kernel = _of("/vm/kernel/path" if asked.kernel else "", kernels.prepare, path, cache, kernels.BASE_MODULES)
    for name in ("initrd", "device_tree"):
        file = getattr(asked, name)
        if file and not os.access(file, os.R_OK):
            raise FileError("read", file, 2 if not os.path.exists(file) else 13)
    how = _acceleration(hypervisor, kernel, cache)
    return {
        "hypervisor": [hypervisor.path, list(hypervisor.version), hypervisor.arch],
        "kernel": kernel.path,
        "modules": list(kernel.modules),
        "accelerator": how.name,
        "tsc": how.tsc,
        "section": config.get("vm"),
    }


def _acceleration(hypervisor: qemu.Hypervisor, kernel: kernels.Kernel, cache: str) -> accel.Acceleration:
    """Ask what the cache knows; else try, with a guest that says hello and nothing else."""
    known = accel.remembered(hypervisor, cache)
    if known is not None:
        return known
    fd = os.memfd_create("knarr-initramfs", os.MFD_CLOEXEC)
    try:
        write_all(fd, _initramfs(kernel.modules, ""))
        path = f"/proc/{os.getpid()}/fd/{fd}"
        small = vm.Settings(kernel=kernel.path, initramfs=path, memory=_SMALLEST, accelerator="kvm")
        return accel.find(hypervisor, cache, small)
    finally:
        os.close(fd)


def _of(pointer: str, find: Any, *arguments: Any) -> Any:
    """Call it; an Unsupported is about that field of config.json."""
    try:
        return find(*arguments)
    except Unsupported as error:
        error.pointer = error.pointer or pointer
        raise


def _initramfs(modules: Sequence[str], initrd: str) -> bytes:
    """The initramfs. Raises FileError, Unsupported."""
    archive = initramfs(read_file(init_path(), 16 << 20), kernels.read_modules(modules))
    if initrd:  # of archives one after the other, the later one's files count
        first = read_file(initrd, _INITRD_LIMIT)
        archive = first + bytes(-len(first) % 512) + archive
    return archive


def before() -> tuple[tuple[str, Mounted], ...]:
    """What the guest mounts, and where, before its shares: the directory with all of them."""
    return ((_SHARED, Mounted(qemu.TAG, "virtiofs", "")),)


def mounted(number: int) -> Mounted:
    """A directory in there."""
    return Mounted(f"{_SHARED}/{number}", "none", "", _MS_BIND)


def boot(settings: Settings) -> Booting:
    """Begin a guest. Raises as ``vm.launch``."""
    found = settings.found
    asked = vmconfig.wanted(found["section"])
    path, version, arch = found["hypervisor"]
    with open(settings.initramfs, "wb", opener=_private) as file:
        file.write(_initramfs(found["modules"], asked.initrd))
    launched = vm.launch(
        qemu.Hypervisor(path, tuple(version), arch),
        vm.Settings(
            kernel=found["kernel"],
            initramfs=settings.initramfs,
            memory=asked.memory or settings.memory,
            cpus=asked.cpus or settings.cpus,
            shares=tuple(Share(each.source, each.writable) for each in settings.shares or ()),
            accelerator=found["accelerator"],
            tsc=found["tsc"],
            device_tree=asked.device_tree,
            words=asked.words,
            parameters=asked.parameters,
        ),
    )
    return Booting(launched.pid, launched.pidfd, launched.channel, launched.console, patience=_PATIENCE)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)
