"""Power cuts: a virtual machine that pulls, unpacks and names images is killed at moments of chance, again and again.

    python tests/vm/powercut.py [--rounds N] [--seed N] [--keep]

The guest is the one of vm.py, but without systemd: its initrd mounts a disk of its own (ext4 with a commit interval of a
quarter of an hour, in turns with data=writeback) and begins powerload.py. QEMU is killed with what the guest has not synced,
and boots again on the same disk. Then no name, blob, unpacked layer, tar or index may be damaged, names must be those
that were told to be there (give or take what was under way), prune must leave nothing unfinished, and after the last round everything is pulled again.
Ends with 1 and what is wrong otherwise. ``make test-vm`` makes a few rounds; KNARR_TEST_FULL=1 a hundred.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
from hashlib import sha256
from pathlib import Path

import vm

ROUNDS = 4
FULL_ROUNDS = 100
SECONDS = 12.0  # of work before a cut, at most
BOOT_SECONDS = 300.0
KINDS = ("commit=900", "commit=900,data=writeback")
IMAGES = 6

INIT = f"""#!/bin/sh
busybox mkdir -p /proc /dev /root
busybox mount -t devtmpfs dev /dev
for module in $(busybox cat /modules); do busybox insmod /$module; done
busybox mount -t ext4 /dev/vda /root
busybox mkdir -p /root{vm.PLACE} /root/mnt
busybox mount -t ext4 -o ro /dev/vdb /root{vm.PLACE}
busybox mount -t proc proc /root/proc
busybox mount -t sysfs sys /root/sys
busybox mount -t cgroup2 cgroup /root/sys/fs/cgroup
busybox mount -t tmpfs tmp /root/tmp
busybox mount -t devtmpfs dev /root/dev
busybox mount -t ext4 -o "$(busybox sed 's/.*knarr.disk=\\([^ ]*\\).*/\\1/' /root/proc/cmdline)" /dev/vdc /root/mnt
exec busybox chroot /root /bin/sh {vm.PLACE}/run "$(busybox sed 's/.*knarr.do=\\([^ ]*\\).*/\\1/' /root/proc/cmdline)"
"""

RUN = f"""#!/bin/sh
exec >"$(echo /dev/vport*p1)" 2>&1
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 PYTHONDONTWRITEBYTECODE=1
PYTHONPATH={vm.PLACE}/site /usr/bin/python3 {vm.PLACE}/powerload.py $(echo "$1" | tr , ' ')
echo ended $?
"""


class Round:
    """What one boot said."""

    def __init__(self) -> None:
        self.names: set[str] | None = None  # as it found them
        self.did: set[str] | None = None  # as they were after the last thing done
        self.doing: list[str] = []
        self.wrong: list[str] = []
        self.opened = ""
        self.steps = 0
        self.healed = False
        self.ended = False
        self.other: list[str] = []

    def take(self, line: str) -> None:
        """Read a line of the guest's."""
        word, *rest = line.split() or [""]
        if word == "names":
            self.names = set(rest)
        elif word == "opened":
            self.opened = rest[0]
        elif word == "wrong":
            self.wrong.append(line[6:])
        elif word == "doing":
            self.doing = rest
        elif word == "did":
            self.did, self.doing, self.steps = set(rest), [], self.steps + 1
        elif word == "healed":
            self.healed = rest == [str(IMAGES)]
        elif word == "ended":
            self.ended = True
        elif word != "working":
            self.other.append(line)


def main(words: list[str]) -> int:
    """Cut the power; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    rounds = FULL_ROUNDS if os.environ.get("KNARR_TEST_FULL") else ROUNDS
    parser.add_argument("--rounds", type=int, default=rounds, metavar="N", help=f"how many cuts ({rounds})")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30), metavar="N", help="of what is done")
    parser.add_argument("--keep", metavar="FILE", help="keep the disk when something is wrong")
    given = parser.parse_args(words)
    print(f"power cuts: {given.rounds}, seed {given.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="knarr-power-") as name:
        folder = Path(name)
        try:
            qemu = _prepared(folder)
            return _cut(qemu, folder, given)
        except vm.NoVm as error:
            sys.stderr.write(f"knarr: {error}\n")
            return 2


def _cut(qemu: list[str], folder: Path, given: argparse.Namespace) -> int:
    chance = random.Random(given.seed)
    must: set[str] = set()
    under_way: list[str] = []
    for number in range(given.rounds + 1):
        last = number == given.rounds
        seconds = chance.uniform(0.1, SECONDS)
        what = "check" if last else f"work,{given.seed + number}"
        said = _boot(qemu, folder, what, KINDS[number % len(KINDS)], None if last else seconds)
        problems = list(said.wrong)
        if said.names is None or (not said.healed if last else said.ended):
            problems.append("the guest did not come to its end:\n" + "\n".join(said.other[-30:]))
        elif (said.names ^ must) - set(under_way[1:]):
            problems.append(f"names are {sorted(said.names)}, told were {sorted(must)} (under way: {under_way})")
        done = "checked, pulled again" if last else f"{said.steps} steps, cut after {seconds:.1f} s in {' '.join(said.doing)}"
        print(f"{'FAIL' if problems else 'ok'}  {number + 1}: opened in {said.opened} s; {done}", flush=True)
        if problems:
            print("\n".join(problems))
            if given.keep:
                shutil.copy(folder / "data.ext4", given.keep)
            return 1
        must = said.did if said.did is not None else said.names or set()
        under_way = said.doing
    return 0


def _boot(qemu: list[str], folder: Path, what: str, disk: str, seconds: float | None) -> Round:
    """Boot, read what it says, and kill it so many seconds after it began to work (None: let it end)."""
    said = Round()
    line = f"console=ttyS0 loglevel=3 mitigations=off no_timer_check panic=-1 knarr.disk={disk} knarr.do={what}"
    with subprocess.Popen(
        [*qemu, "-append", line], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, errors="replace"
    ) as process:
        timer = threading.Timer(BOOT_SECONDS, process.kill)
        timer.start()
        try:
            for text in process.stdout or ():
                said.take(text.rstrip("\n"))
                if text.startswith("working") and seconds is not None:
                    timer.cancel()
                    timer = threading.Timer(seconds, process.kill)  # SIGKILL: what the guest had in memory is gone
                    timer.start()
        finally:
            timer.cancel()
            process.kill()
    if said.names is None:
        said.other += (folder / "console").read_text(errors="replace").splitlines()[-20:]
    return said


# -- disks -------------------------------------------------------------------------------------------------------------


def _prepared(folder: Path) -> list[str]:
    """Make the disks and the initrd; QEMU's command. Raises NoVm."""
    home = vm.guest()
    tree = folder / "code"
    tree.mkdir()
    packages = Path(sys.prefix, "lib", f"python{sys.version_info[0]}.{sys.version_info[1]}", "site-packages")
    shutil.copytree(packages / "knarr", tree / "site/knarr", symlinks=True)
    shutil.copy(Path(__file__).with_name("powerload.py"), tree)
    (tree / "run").write_text(RUN)
    _layout(tree / "images")
    vm._image(tree, folder / "code.ext4", "128M")  # the same disks, made in the same way
    done = subprocess.run(
        ["mke2fs", "-q", "-t", "ext4", str(folder / "data.ext4"), "1G"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise vm.NoVm(f"mke2fs failed: {done.stderr}")
    # A later file of an initramfs takes the place of an earlier one.
    more = vm._cpio(1, "init", 0o100755, INIT.encode()) + vm._cpio(0, "TRAILER!!!", 0, b"")
    (folder / "initrd").write_bytes((home / "initrd").read_bytes() + more)
    program = vm._program("qemu-system-x86_64")
    command = [program, "-M", "q35", "-accel", "tcg", "-cpu", "max", "-m", "1G", "-no-reboot"]
    command += ["-kernel", str(home / "vmlinuz"), "-initrd", str(folder / "initrd")]
    disks = ((home / "root.ext4", "snapshot=on"), (folder / "code.ext4", "snapshot=on"), (folder / "data.ext4", "cache=writeback"))
    for number, (image, option) in enumerate(disks):
        command += ["-drive", f"id=d{number},file={image},format=raw,if=none,{option}"]
        command += ["-device", f"virtio-blk-pci,drive=d{number}"]
    command += ["-device", "virtio-serial-pci", "-chardev", "file,id=out,path=/dev/stdout"]
    command += ["-device", "virtserialport,chardev=out", "-serial", f"file:{folder}/console"]
    return [*command, "-display", "none", "-monitor", "none", "-nodefaults", "-no-user-config"]


def _layout(path: Path) -> None:
    """A layout with images v0, v1, …: a layer that all share, two of their own, the upper with whiteouts; not compressed."""
    chance = random.Random(12)
    blobs = path / "blobs/sha256"
    blobs.mkdir(parents=True)

    def put(data: bytes, media_type: str) -> dict[str, object]:
        hexadecimal = sha256(data).hexdigest()
        (blobs / hexadecimal).write_bytes(data)
        return {"mediaType": media_type, "digest": f"sha256:{hexadecimal}", "size": len(data)}

    base = _tar({f"usr/{number}": chance.randbytes(20_000) for number in range(60)})
    entries = []
    for number in range(IMAGES):
        middle = {f"srv/{number}/{each}": chance.randbytes(9_000) for each in range(90)}
        top = {f"srv/{number}/.wh.{each}": b"" for each in range(9)} | {"etc/big": chance.randbytes(2_000_000)}
        tars = [base, _tar(middle), _tar(top)]
        kind = "application/vnd.oci.image.layer.v1.tar"
        diff_ids = [f"sha256:{sha256(data).hexdigest()}" for data in tars]
        config = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}}
        manifest = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": put(json.dumps(config).encode(), "application/vnd.oci.image.config.v1+json"),
            "layers": [put(data, kind) for data in tars],
        }
        entry = put(json.dumps(manifest).encode(), str(manifest["mediaType"]))
        entries.append({**entry, "annotations": {"org.opencontainers.image.ref.name": f"v{number}"}})
    (path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": entries}))


def _tar(files: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mtime = len(data), 1_750_000_000
            tar.addfile(entry, io.BytesIO(data))
    return made.getvalue()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
