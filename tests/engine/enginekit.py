"""What tests of the engine and of the command share: an image, users to be, and a clean-up that looks for leftovers."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import pytest

import knarr
from knarr.engine.ids import REGISTRIES

SOURCE = Path(knarr.__file__).parents[1]
BUSYBOX = next((path for path in ("/bin/busybox", "/usr/bin/busybox") if os.path.exists(path)), "")
APPLETS = (
    "sh", "cat", "cp", "ls", "echo", "id", "env", "pwd", "true", "false", "sleep", "test", "stat", "wc", "find", "kill",
    "touch", "mkdir", "mount", "ps", "head", "dd", "tty", "stty", "df", "hostname", "readlink", "chown", "chmod", "rm",
    "ln", "date", "yes", "sync",
)  # fmt: skip


def is_static(path: str) -> bool:
    """Whether a program needs no interpreter: only such a one runs alone in an image."""
    data = Path(path).read_bytes()[:4096] if path else b""
    return data[:4] == b"\x7fELF" and b"ld-linux" not in data


def need_busybox() -> None:
    """Skip without a static busybox."""
    if not is_static(BUSYBOX):
        pytest.skip("busybox-static is not installed")


def tree(folder: Path) -> Path:
    """A root file system of busybox with two users."""
    need_busybox()
    for name in ("bin", "etc", "root", "home/app", "tmp", "data"):
        (folder / name).mkdir(parents=True)
    shutil.copy(BUSYBOX, folder / "bin/busybox")
    for applet in APPLETS:
        (folder / "bin" / applet).symlink_to("busybox")
    (folder / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n")
    (folder / "etc/group").write_text("root:x:0:\napp:x:1000:\nextra:x:1001:app\n")
    (folder / "data/file").write_text("of the image\n")
    (folder / "tmp").chmod(0o1777)
    return folder


def layout(folder: Path, links: dict[str, str] | None = None, **config: object) -> str:
    """An OCI layout with one layer of that tree, written by hand; returns its reference.

    ``links`` are symbolic links to put into the tree; ``config`` are fields of the image's config.
    """
    root = tree(folder / "tree")
    for name, target in (links or {}).items():
        (root / name).unlink(missing_ok=True)
        (root / name).symlink_to(target)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path in sorted(root.rglob("*")):
            entry = tar.gettarinfo(str(path), str(path.relative_to(root)))
            entry.uid = entry.gid = 1000 if "home/app" in entry.name else 0
            entry.uname = entry.gname = ""
            if entry.isreg():
                with path.open("rb") as file:
                    tar.addfile(entry, file)
            else:
                tar.addfile(entry)
    shutil.rmtree(root)
    blobs = folder / "blobs/sha256"
    blobs.mkdir(parents=True)

    def blob(data: bytes, media: str) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"mediaType": f"application/vnd.oci.image.{media}", "digest": f"sha256:{digest}", "size": len(data)}

    layer = buffer.getvalue()
    document = {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine],
        "os": "linux",
        "created": "2026-01-02T03:04:05Z",
        "config": {"Cmd": ["/bin/sh"], "Env": ["PATH=/bin", "FROM=image"], "Labels": {"who": "test"}, **config},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": blob(json.dumps(document).encode(), "config.v1+json"),
        "layers": [blob(layer, "layer.v1.tar")],
    }
    named = blob(json.dumps(manifest).encode(), "manifest.v1+json")
    named["annotations"] = {"org.opencontainers.image.ref.name": "one"}
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [named]}))
    (folder / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    return f"oci:{folder}:one"


class Person:
    """Somebody who uses knarr: this user, or (when this is root) an ordinary one, with or without subordinate ids.

    ``folder`` is the person's own: store, state and home. ``run`` calls a program as that person.
    """

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind = kind
        self.folder = folder
        self.rootless = kind != "root"
        self.prefix: list[str] = []
        self.python = sys.executable
        if kind in ("nobody", "nobody-subids"):
            self.prefix = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
            os.chown(folder, 65534, 65534)
            self.python = self._usable_python()
        if kind == "nobody-subids":
            for program in ("newuidmap", "newgidmap"):
                if shutil.which(program) is None:
                    pytest.skip(f"{program} is not installed (package uidmap)")
            table = folder / "subids"
            table.write_text("65534:200000:65536\n")
            # Seen only in a mount namespace of this person: the machine's own tables stay as they are.
            script = f'mount --bind {table} /etc/subuid && mount --bind {table} /etc/subgid && exec "$@"'
            self.prefix = ["unshare", "-m", "sh", "-c", script, "sh", *self.prefix]

    @property
    def environment(self) -> dict[str, str]:
        packages = [str(SOURCE), *(path for path in sys.path if path.endswith("site-packages"))]
        return {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(self.folder),
            "KNARR_STORE": str(self.folder / "store"),
            "KNARR_RUN": str(self.folder / "run"),
            "PYTHONPATH": ":".join(packages),
            "PYTHONDONTWRITEBYTECODE": "1",
            "LANG": "C.UTF-8",
        }

    def _usable_python(self) -> str:
        """A Python this person may run that finds knarr and its packages: the tests' own may lie in root's home."""
        # It must also be able to start itself again, which setpriv's own exec does not show.
        test = (
            "import knarr.cli.main, isal, zstandard, subprocess, sys\n"
            "subprocess.run([sys.executable, '-c', ''], check=True)\n"
            "print(sys.version_info[:2])"
        )
        for candidate in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
            if os.path.exists(candidate):
                done = self.run([candidate, "-c", test])
                if done.returncode == 0 and done.stdout.decode().strip() == str(sys.version_info[:2]):
                    return candidate
        pytest.skip("an ordinary user may not run a Python of this version with knarr's packages")

    def run(
        self, argv: list[str], *, input: bytes | None = None, timeout: float = 120, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a program as this person."""
        return subprocess.run(
            [*self.prefix, *argv],
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            timeout=timeout,
            check=False,
            env={**self.environment, **(env or {})},
            cwd=self.folder,
        )

    def command(self, *words: str) -> list[str]:
        """The command line of ``knarr`` for this person."""
        return [*self.prefix, self.python, "-m", "knarr.cli.main", *words]

    def knarr(
        self, *words: str, input: bytes | None = None, env: dict[str, str] | None = None, timeout: float = 120
    ) -> subprocess.CompletedProcess[bytes]:
        """Call ``knarr``."""
        return self.run([self.python, "-m", "knarr.cli.main", *words], input=input, env=env, timeout=timeout)

    def start(self, *words: str, **options: object) -> subprocess.Popen[bytes]:
        """Start ``knarr`` and do not wait for it."""
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        process: subprocess.Popen[bytes] = subprocess.Popen(
            self.command(*words),
            env=self.environment,
            cwd=self.folder,
            **streams,  # type: ignore[call-overload]  # one of subprocess' many overloads
        )
        return process

    def python_script(self, text: str, timeout: float = 120) -> subprocess.CompletedProcess[bytes]:
        """Run Python code that imports knarr."""
        return self.run([self.python, "-c", text], timeout=timeout)


def kinds() -> list[str]:
    """Who the tests are run as."""
    return ["root", "nobody", "nobody-subids"] if os.geteuid() == 0 else ["self"]


def new_folder() -> Path:
    """A fresh folder in /tmp that other users may enter."""
    folder = Path(tempfile.mkdtemp(prefix="knarr-test-", dir="/tmp"))
    folder.chmod(0o755)
    return folder


def remove_folder(folder: Path) -> None:
    """Remove a folder, also with files of subordinate ids in it."""
    shutil.rmtree(folder, ignore_errors=True)


def _target(entry: os.DirEntry[str]) -> str:
    try:
        return os.readlink(entry.path)
    except OSError:
        return ""  # the lock, or one that somebody else gave back just now


def leftovers(folder: Path) -> list[str]:
    """What must not be there after everything ended: state, container directories, ranges of ids, mounts."""
    found = []
    for part in ("run", "store/containers", "store/names"):
        where = folder / part
        if where.is_dir():
            found += [f"{part}/{name}" for name in os.listdir(where) if not name.startswith(".") and name != "host"]
    for registry in REGISTRIES:
        if os.access(registry, os.X_OK):
            found += [entry.name for entry in os.scandir(registry) if _target(entry).startswith(f"{folder}/")]
    mounts = Path("/proc/self/mountinfo").read_text()
    if str(folder) in mounts:
        found.append("a mount")
    return found
