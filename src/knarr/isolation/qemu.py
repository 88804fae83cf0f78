"""QEMU as the machine of a guest: found and checked, and its command line, which names all there is (cold).

x86_64 has the machine ``microvm``, arm64 ``virt``; both with virtio-mmio devices: the channel (a virtio-serial port),
the shared directory (virtio-fs). docs/isolation-vm.md says why each word is there and what it saves.
"""

from __future__ import annotations

import os
import subprocess

from knarr.base import fastjson
from knarr.base.errors import FileError, Unsupported
from knarr.base.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

VARIABLE = "KNARR_QEMU"
CHANNEL = "vport0p1"
"""The name of the channel's device in the guest."""
TAG = "knarr"
"""What the guest mounts the shared directory by: ``mount -t virtiofs knarr /where``."""
_FOLDERS = ("/usr/local/bin", "/usr/bin")
_HELPERS = ("/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd", "/usr/lib/virtiofsd", "/usr/local/libexec/virtiofsd")
_OLDEST = (5, 2)  # microvm with ACPI, by which Debian's kernels find virtio-mmio devices
_PATIENCE = 10.0
MACHINES = {"x86_64": "microvm", "aarch64": "virt"}


class Hypervisor(Record):
    """A QEMU that can be started: path, version, architecture of its machines (that of the host)."""

    path: str
    version: tuple[int, ...]
    arch: str


class Machine(Record):
    """A guest's machine. ``memory`` in bytes. ``kernel`` and ``initrd`` are paths as QEMU sees them.

    ``channel`` (a socket), ``console`` (a pipe), ``shares`` (the connection to virtiofsd; -1: none) and ``image`` (of a
    disk, opened as it may be written to; -1: none) are descriptors that QEMU inherits, and so are ``nics``, sockets
    whose packets are the frames of its network devices. ``tsc`` is the frequency of the host's time stamp counter in
    kHz, 0 where it is not known.
    ``words`` are put on the kernel's command line, ``parameters`` on QEMU's.
    """

    kernel: str
    initrd: str
    memory: int
    cpus: int
    accelerator: str
    channel: int
    console: int
    shares: int = -1
    nics: Sequence[int] = ()
    image: int = -1
    image_format: str = ""
    image_writable: bool = False
    tsc: int = 0
    device_tree: str = ""
    words: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()


def find(environment: Mapping[str, str], named: str = "") -> Hypervisor:
    """The QEMU of this machine: ``named`` (vm.hypervisor.path), KNARR_QEMU, in PATH, where distributions put it.

    Raises Unsupported with advice when there is none, or none that serves.
    """
    arch = os.uname().machine
    if arch not in MACHINES:
        raise Unsupported("isolation vm", f"no machine of QEMU's is known for {arch}")
    if named or environment.get(VARIABLE):
        return check(named or os.path.abspath(environment[VARIABLE]), arch)
    folders = [folder for folder in environment.get("PATH", "").split(":") if folder.startswith("/")]
    for folder in (*folders, *_FOLDERS):
        path = f"{folder}/qemu-system-{arch}"
        if os.access(path, os.X_OK) and os.path.isfile(path):
            return check(path, arch)
    raise Unsupported("isolation vm", f"there is no qemu-system-{arch} on this machine", hint=advice(arch))


def advice(arch: str) -> str:
    """What to install."""
    package = {"x86_64": "qemu-system-x86", "aarch64": "qemu-system-arm"}[arch]
    return (
        f"on Debian: apt-get install --no-install-recommends {package} (with virtiofsd from Debian 13), or {VARIABLE}"
    )


def check(path: str, arch: str) -> Hypervisor:
    """The QEMU at ``path``, asked for its version. Raises Unsupported when it is none or too old, FileError."""
    version = parse_version(_asked(path))
    if not version:
        raise Unsupported("isolation vm", f"{path} --version does not answer as QEMU does", hint=advice(arch))
    if version < _OLDEST:
        known, oldest = (".".join(map(str, each)) for each in (version, _OLDEST))
        raise Unsupported("isolation vm", f"{path} is QEMU {known}, older than {oldest}", hint=advice(arch))
    return Hypervisor(path, version, arch)


def parse_version(text: str) -> tuple[int, ...]:
    """(7, 2, 22) of ``QEMU emulator version 7.2.22 (Debian …)``; empty when it says something else."""
    words = text.split()
    if words[:3] != ["QEMU", "emulator", "version"] or len(words) < 4:
        return ()
    return tuple(int(part) for part in words[3].split(".") if part.isdigit())


def _asked(path: str) -> str:
    try:
        done = subprocess.run(
            [path, "--version"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={},
            timeout=_PATIENCE,
            check=False,
        )
    except OSError as error:
        raise FileError("start", path, error.errno or 0) from None
    except subprocess.TimeoutExpired:
        raise Unsupported("isolation vm", f"{path} --version does not end") from None
    return done.stdout[:400].decode("ascii", "replace") if done.returncode == 0 else ""


# -- the machine -------------------------------------------------------------------------------------------------------

# What a container's kernel need not do when it boots, and what makes it certain that it does boot.
_X86_WORDS = (
    *("quiet", "panic=-1"),
    "console=ttyS0",
    "reboot=t",  # a triple fault, which ends QEMU (-no-reboot); microvm has no other way that all kernels know
    "8250.nr_uarts=1",
    "cryptomgr.notests",
    "initcall_blacklist=init_kprobe_trace",
    *("no_timer_check", "pci=off"),
)
_ARM_WORDS = ("quiet", "panic=-1", "console=ttyAMA0", "cryptomgr.notests")
_OURS = ("rdinit=/init", f"knarr.channel={CHANNEL}", "knarr.end=restart")


def command(hypervisor: Hypervisor, machine: Machine) -> list[str]:
    """QEMU's arguments for that machine; pure."""
    arm = hypervisor.arch == "aarch64"
    kind = "virt" if arm else "microvm,acpi=on,rtc=on,pit=off,pic=off"
    memory = -(-machine.memory >> 20)
    words = [hypervisor.path, "-M", f"{kind},memory-backend=memory", "-accel", machine.accelerator, "-cpu", "max"]
    words += ["-m", f"{memory}M", "-object", f"memory-backend-memfd,id=memory,size={memory}M,share=on"]
    words += ["-smp", str(machine.cpus), "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    words += ["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]
    # Of virtio-mmio only the present version: virtio-fs needs it, and the older one is code of its own.
    words += ["-global", "virtio-mmio.force-legacy=false"]
    words += ["-kernel", machine.kernel, "-initrd", machine.initrd, "-append", kernel_line(hypervisor.arch, machine)]
    # A pipe: bytes are written one by one, of which a socket holds few hundred. Full, the guest waits for each in vain.
    words += ["-add-fd", f"fd={machine.console},set=1"]
    words += ["-chardev", "file,id=console,path=/dev/fdset/1,append=on", "-serial", "chardev:console"]
    words += ["-chardev", f"socket,id=channel,fd={machine.channel}"]
    words += ["-device", "virtio-serial-device", "-device", "virtserialport,chardev=channel"]
    if machine.shares >= 0:
        words += ["-chardev", f"socket,id=shares,fd={machine.shares}"]
        words += ["-device", f"vhost-user-fs-device,chardev=shares,tag={TAG}"]
    for number, fd in enumerate(machine.nics):
        words += ["-netdev", f"socket,id=net{number},fd={fd}", "-device", f"virtio-net-device,netdev=net{number}"]
    if machine.image >= 0:
        words += disk(machine)
    if machine.device_tree:
        words += ["-dtb", machine.device_tree]
    return [*words, *machine.parameters]


def disk(machine: Machine) -> list[str]:
    """The words for the one disk, /dev/vda of the guest; pure.

    What it is is said and not guessed, and no image can name a further file: neither by a backing file, nor is there
    any behind the wall.
    """
    readonly = "off" if machine.image_writable else "on"
    words = ["-add-fd", f"fd={machine.image},set=2"]
    words += ["-blockdev", f"driver=file,node-name=file,filename=/dev/fdset/2,read-only={readonly}"]
    image: dict[str, object] = {"driver": machine.image_format, "node-name": "image", "file": "file"}
    image["read-only"] = not machine.image_writable
    if machine.image_format == "qcow2":
        image["backing"] = None
    return [*words, "-blockdev", fastjson.dumps(image).decode(), "-device", "virtio-blk-device,drive=image"]


def kernel_line(arch: str, machine: Machine) -> str:
    """The kernel's command line; pure. What the caller asks for stands after what it may change."""
    words = list(_ARM_WORDS if arch == "aarch64" else _X86_WORDS)
    if arch == "x86_64" and machine.accelerator.startswith("tcg") and machine.tsc:
        # Emulated, the counter is the host's own. Measuring it against an emulated timer fails on a busy machine, and
        # the kernel then has no clock and hangs.
        words += [f"tsc_early_khz={machine.tsc}", "tsc=reliable"]
    return " ".join((*words, *machine.words, *_OURS))


# -- the shared directory ----------------------------------------------------------------------------------------------


def find_helper(environment: Mapping[str, str]) -> str:
    """The path of virtiofsd. Raises Unsupported with advice when there is none."""
    for path in (environment.get("KNARR_VIRTIOFSD", ""), *_HELPERS):
        if path and os.access(path, os.X_OK) and os.path.isfile(path):
            return path
    package = "virtiofsd, or before Debian 13 qemu-system-common"
    raise Unsupported(
        "isolation vm", "there is no virtiofsd on this machine", hint=f"on Debian: apt-get install {package}"
    )


def is_rust(version: str) -> bool:
    """Whether what ``virtiofsd --version`` printed is that of the program in Rust, whose options are others."""
    return "version" not in version


def helper_command(path: str, *, rust: bool, listener: int, directory: str) -> list[str]:
    """Arguments for virtiofsd: it serves one guest, who connects to the socket ``listener``, and ends with it.

    No device nodes and no file handles. Mounts below ``directory`` are told to the guest, which gives each a number of
    its own (inode numbers of two mounts may be the same).
    """
    if rust:
        options = ["--sandbox=none", "--cache=auto", "--xattr", "--announce-submounts", "--inode-file-handles=never"]
        return [path, f"--fd={listener}", f"--shared-dir={directory}", "--log-level=error", *options]
    options = ["cache=auto", "xattr", "announce_submounts", "sandbox=chroot", "log_level=err", "modcaps=-mknod"]
    return [path, f"--fd={listener}", "--rlimit-nofile=0", "-f", "-o", f"source={directory}", "-o", ",".join(options)]
