"""The section ``vm`` of config.json: what of it is honoured, what is refused (hot, pure). runtime-spec, config-vm.md.

Types and absolute paths were checked before (spec/validate.py).
"""

from __future__ import annotations

from knarr.base.errors import SpecFinding
from knarr.base.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

LEAST = 64 << 20
"""Bytes of memory below which no guest boots."""
MOST_CPUS = 64
FORMATS = ("raw", "qcow2")
_OURS = ("rdinit=", "knarr.")
_XEN = "hands hardware of the host to the guest, which QEMU does not by this"


class Wanted(Record):
    """The section as decided; "" and 0 for what it does not say.

    ``words`` for the kernel's command line, ``parameters`` for the hypervisor's. ``memory`` in bytes. ``image`` is the
    file that holds the container's root, ``format`` of FORMATS.
    """

    hypervisor: str = ""
    parameters: tuple[str, ...] = ()
    kernel: str = ""
    words: tuple[str, ...] = ()
    initrd: str = ""
    cpus: int = 0
    memory: int = 0
    device_tree: str = ""
    image: str = ""
    format: str = ""


def wanted(section: dict[str, Any] | None) -> Wanted:
    """What the section asks for; nothing without one."""
    section = section or {}
    hypervisor, kernel = section.get("hypervisor") or {}, section.get("kernel") or {}
    hardware, image = section.get("hwConfig") or {}, section.get("image") or {}
    return Wanted(
        hypervisor=hypervisor.get("path") or "",
        parameters=tuple(hypervisor.get("parameters") or ()),
        kernel=kernel.get("path") or "",
        words=tuple(kernel.get("parameters") or ()),
        initrd=kernel.get("initrd") or "",
        cpus=hardware.get("vcpus") or 0,
        memory=hardware.get("memory") or 0,
        device_tree=hardware.get("deviceTree") or "",
        image=image.get("path") or "",
        format=image.get("format") or "",
    )


def cannot_honour(section: dict[str, Any] | None, arch: str) -> list[SpecFinding]:
    """What of the section cannot be had, each with its pointer."""
    section = section or {}
    found: list[SpecFinding] = []
    words: list[str] = (section.get("kernel") or {}).get("parameters") or []
    for number, word in enumerate(words):
        at = f"/vm/kernel/parameters/{number}"
        for each in word.split():
            if each == "--":
                found.append(SpecFinding(at, "what stands behind -- is for a first program, which is knarr's"))
            elif each.startswith(_OURS):
                found.append(SpecFinding(at, f"{each} is for knarr to set"))
        if not word.isprintable():
            found.append(SpecFinding(at, "a kernel's command line is one line of text"))
    format = (section.get("image") or {}).get("format") or ""
    if format and format not in FORMATS:
        why = f"a {format} image may refer to other files; qemu-img convert -O qcow2 makes one that does not"
        found.append(SpecFinding("/vm/image/format", why))
    hardware = section.get("hwConfig") or {}
    found += [SpecFinding(f"/vm/hwConfig/{name}", _XEN) for name in ("dtdevs", "iomems", "irqs") if hardware.get(name)]
    if hardware.get("deviceTree") and arch != "aarch64":
        found.append(SpecFinding("/vm/hwConfig/deviceTree", f"a machine of {arch} has none"))
    if "deviceTree" in hardware and not hardware["deviceTree"].startswith("/"):
        found.append(SpecFinding("/vm/hwConfig/deviceTree", "must be an absolute path"))
    cpus, memory = hardware.get("vcpus"), hardware.get("memory")
    if cpus is not None and not 0 < cpus <= MOST_CPUS:
        found.append(SpecFinding("/vm/hwConfig/vcpus", f"must be 1 to {MOST_CPUS}"))
    if memory is not None and memory < LEAST:
        found.append(SpecFinding("/vm/hwConfig/memory", f"a guest takes at least {LEAST} bytes"))
    return found
