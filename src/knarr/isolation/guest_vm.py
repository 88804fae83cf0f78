"""The kind ``vm`` as kinds.py wants it: a guest in a microVM of QEMU's (cold)."""

from __future__ import annotations

import os
from _thread import start_new_thread

from knarr.base.errors import FileError, KnarrError, Unsupported
from knarr.base.files import read_file, write_atomic
from knarr.isolation import accel, diskimage, frames, kernels, qemu, vm, vmconfig
from knarr.isolation.initramfs import initramfs
from knarr.isolation.kinds import Booting, Mounted, Settings
from knarr.isolation.nic import NICS
from knarr.kernel.process import ended, signal_pid
from knarr.runtime.launch import init_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from knarr.isolation.kinds import Share

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
    image = None
    wanted: tuple[str, ...] = kernels.BASE_MODULES
    if asked.image:
        writable = not (config.get("root") or {}).get("readonly")
        image = diskimage.look(asked.image, asked.format, writable=writable)
        wanted = (*wanted, "virtio_blk", image.fstype)
    path = asked.kernel or kernels.find()
    kernel = _of("/vm/kernel/path" if asked.kernel else "", kernels.prepare, path, cache, wanted)
    for name in ("initrd", "device_tree"):
        file = getattr(asked, name)
        if file and not os.access(file, os.R_OK):
            raise FileError("read", file, 2 if not os.path.exists(file) else 13)
    how = _acceleration(hypervisor, kernel, cache)
    return {
        "hypervisor": [hypervisor.path, list(hypervisor.version), hypervisor.arch],
        "kernel": kernel.path,
        "modules": list(kernel.modules),
        "folder": kernels.module_folder(kernel.release),
        "accelerator": how.name,
        "tsc": how.tsc,
        "section": config.get("vm"),
        "image": None if image is None else image.facts(),
    }


def described() -> str:
    """QEMU, the kernel, and what is known of KVM. Raises Unsupported, FileError."""
    hypervisor = qemu.find(os.environ)
    qemu.find_helper(os.environ)
    kernel = os.path.basename(kernels.find()).removeprefix("vmlinuz-")
    known = accel.remembered(hypervisor, accel.cache_directory())
    if known is None:
        how = "KVM is tried at the first use"
    else:
        how = "KVM" if not known.why else f"emulated, without KVM: {known.why}"
    return f"QEMU {'.'.join(map(str, hypervisor.version))}, Linux {kernel}, {how}"


def _acceleration(hypervisor: qemu.Hypervisor, kernel: kernels.Kernel, cache: str) -> accel.Acceleration:
    """Ask what the cache knows; else try, with a guest that says hello and nothing else."""
    known = accel.remembered(hypervisor, cache)
    if known is not None:
        return known
    path = f"{os.environ.get('TMPDIR') or '/tmp'}/knarr-{os.urandom(8).hex()}"
    try:
        write_atomic(path, _initramfs(kernel.modules, ""))
        return accel.find(
            hypervisor,
            cache,
            vm.Settings(
                kernel=kernel.path,
                initramfs=path,
                memory=_SMALLEST,
                accelerator=accel.TRIED,
                tsc=accel.tsc_khz(),
            ),
        )
    finally:
        os.unlink(path)


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


def drivers(_found: dict[str, Any]) -> tuple[Share, ...]:
    """None: what is wanted goes through the channel."""
    return ()


def network(found: dict[str, Any], _share: int, *, ipv6: bool) -> tuple[str, bool, list[tuple[int, int, bytes]]]:  # noqa: ARG001  # its kernel has it
    """Its devices are eth0, eth1, … once their driver is loaded. Raises Unsupported, FileError."""
    steps: list[tuple[int, int, bytes]] = []
    for name, data in kernels.read_modules(kernels.find_modules(found["folder"], ("virtio_net",))):
        path = frames.texts(f"/run/{name}")
        for at in range(0, len(data), frames.DATA_LIMIT):
            how = frames.WRITE_MORE if at else frames.WRITE_NEW
            steps.append((frames.WRITE, how, path + data[at : at + frames.DATA_LIMIT]))
        steps.append((frames.MODULE, 0, frames.texts(f"/run/{name}", "")))
        steps.append((frames.WRITE, frames.WRITE_NEW, path))  # its memory is the container's again
    return "eth", True, steps


def boot(settings: Settings) -> Booting:
    """Begin a guest. Raises as ``vm.launch``."""
    found = settings.found
    asked = vmconfig.wanted(found["section"])
    path, version, arch = found["hypervisor"]
    write_atomic(settings.initramfs, _initramfs(found["modules"], asked.initrd))
    launched = vm.launch(
        qemu.Hypervisor(path, tuple(version), arch),
        vm.Settings(
            kernel=found["kernel"],
            initramfs=settings.initramfs,
            memory=asked.memory or settings.memory,
            cpus=asked.cpus or settings.cpus,
            shares=settings.shares,
            accelerator=found["accelerator"],
            tsc=found["tsc"],
            device_tree=asked.device_tree,
            nics=NICS,
            words=asked.words,
            parameters=asked.parameters,
            image=None if found["image"] is None else diskimage.DiskImage(**found["image"]),
        ),
        filters=settings.filters,
    )
    if launched.helper is not None:
        # With descriptors of its own: whoever has the guest may close theirs, and the number be another guest's then.
        start_new_thread(_end_together, (os.dup(launched.helper.pidfd), os.dup(launched.pidfd)))
        launched.helper.close()
    helpers = () if launched.helper is None else (launched.helper.pid,)
    return Booting(
        launched.pid,
        launched.pidfd,
        launched.channel,
        launched.console,
        patience=_PATIENCE,
        helpers=helpers,
        nics=launched.nics,
    )


def templated(config: dict[str, Any]) -> bool:
    """Any may whose section ``vm`` asks for nothing."""
    return vmconfig.wanted(config.get("vm")) == vmconfig.Wanted()


def show(begun: Booting, shares: tuple[Share, ...], of: int) -> None:
    """Mount the shares where its virtiofsd sees them. Raises as ``vm.show``."""
    pidfd = os.pidfd_open(begun.helpers[0])  # our child, not reaped yet
    try:
        vm.show(pidfd, shares, of)
    finally:
        os.close(pidfd)


def _end_together(helper: int, guest: int) -> None:
    """Kill QEMU when virtiofsd ends: the guest would wait for its files for ever."""
    ended(helper, None)
    signal_pid(guest, 9)
    os.close(helper)
    os.close(guest)
