"""Images written by other people's tools, for knarr to read: umoci, buildah, skopeo, docker save, docker import."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

BUSYBOX = ("/bin/busybox", "/usr/bin/busybox")
APPLETS = (
    "sh",
    "cat",
    "ls",
    "echo",
    "id",
    "env",
    "pwd",
    "true",
    "false",
    "sleep",
    "test",
    "stat",
    "wc",
    "find",
    "kill",
    "touch",
    "mkdir",
)


class Missing(Exception):
    """A tool is not here or does not work here; the text says which and why."""


def tool(name: str) -> str:
    """Path of a program of somebody else's."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if found is None:
        raise Missing(f"{name} is not installed")
    return found


def call(*command: str, cwd: Path | None = None, env: dict[str, str] | None = None, timeout: float = 300) -> str:
    """Run a program that must succeed; returns its stdout."""
    done = subprocess.run(
        command,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env={**os.environ, **(env or {})},
    )
    if done.returncode:
        raise Missing(f"{' '.join(command[:4])} … fails here: {(done.stderr or done.stdout).strip()[-400:]}")
    return done.stdout


def make_tree(where: Path) -> Path:
    """A small root file system that uses what layers can hold: links, modes, owners, xattrs, odd names."""
    busybox = next((path for path in BUSYBOX if os.path.exists(path)), None)
    if busybox is None:
        raise Missing("busybox-static is not installed")
    for name in ("bin", "etc", "tmp", "proc", "sys", "dev", "data/deep/er", "gone/dir"):
        (where / name).mkdir(parents=True, exist_ok=True)
    (where / "tmp").chmod(0o1777)
    shutil.copy(busybox, where / "bin/busybox")
    for applet in APPLETS:
        (where / "bin" / applet).symlink_to("busybox")
    (where / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/data:/bin/sh\n")
    (where / "etc/group").write_text("root:x:0:\napp:x:1000:\nextra:x:1001:app\n")
    (where / "data/file").write_text("first layer\n")
    os.link(where / "data/file", where / "data/hardlink")
    (where / "data/absolute").symlink_to("/data/file")
    (where / "data/dangling").symlink_to("nowhere")
    (where / "data/lower-only").write_text("to be removed\n")
    (where / "gone/dir/file").write_text("hidden by the next layer\n")
    (where / "data/setuid").write_text("#!/bin/sh\n")
    (where / "data/setuid").chmod(0o4755)
    (where / "data/name with space\n").write_text("odd name\n")
    os.mkfifo(where / "data/fifo")
    os.utime(where / "data/file", ns=(1_600_000_000_123456789, 1_600_000_000_123456789))
    if os.geteuid() == 0:
        os.chown(where / "data/deep", 1000, 1001)
        os.setxattr(
            where / "data/setuid", "security.capability", bytes.fromhex("0100000200040000000000000000000000000000")
        )
        os.setxattr(where / "data/file", "user.colour", b"blue")
    return where


def change_tree(where: Path) -> None:
    """What the second layer changes: removals, a replaced directory, a new hard link to an old file."""
    (where / "data/lower-only").unlink()
    shutil.rmtree(where / "gone/dir")
    (where / "gone/dir").mkdir()
    (where / "gone/dir/new").write_text("second layer\n")
    os.link(where / "data/file", where / "data/deep/second-link")
    (where / "etc/second").write_text("2\n")


def with_umoci(folder: Path) -> str:
    """Two gzip layers."""
    umoci, layout, bundle = tool("umoci"), folder / "umoci", folder / "umoci-bundle"
    call(umoci, "init", "--layout", str(layout))
    call(umoci, "new", "--image", f"{layout}:two")
    call(umoci, "unpack", "--image", f"{layout}:two", str(bundle))
    make_tree(bundle / "rootfs")
    call(umoci, "repack", "--image", f"{layout}:two", str(bundle))
    shutil.rmtree(bundle)
    call(umoci, "unpack", "--image", f"{layout}:two", str(bundle))
    change_tree(bundle / "rootfs")
    call(umoci, "repack", "--image", f"{layout}:two", str(bundle))
    shutil.rmtree(bundle)
    configure = [
        "--config.env=WHO=umoci",
        "--config.cmd=/bin/sh",
        "--config.cmd=-c",
        "--config.cmd=echo hello from $WHO",
    ]
    call(umoci, "config", "--image", f"{layout}:two", *configure, "--config.workingdir=/data")
    return f"oci:{layout}:two"


def with_skopeo(folder: Path, source: str, kind: str) -> str:
    """The umoci image copied by skopeo: zstd layers, a docker-archive (plain layers), an oci-archive."""
    skopeo = [tool("skopeo"), "--insecure-policy", "copy"]
    if kind == "zstd":
        target = f"oci:{folder / 'skopeo-zstd'}:two"
        # "dir:" in between, because skopeo keeps layers that are compressed already.
        call(*skopeo, "--dest-decompress", source, f"dir:{folder / 'plain-dir'}")
        call(*skopeo, "--dest-compress", "--dest-compress-format", "zstd", f"dir:{folder / 'plain-dir'}", target)
        return target
    file = folder / f"{kind}.tar"
    call(*skopeo, source, f"{kind}:{file}:example.com/two:1")
    return f"{kind}:{file}"


def with_buildah(folder: Path) -> str:
    """One uncompressed layer."""
    options = ["--root", str(folder / "buildah"), "--runroot", str(folder / "buildah-run"), "--storage-driver", "vfs"]
    buildah = [tool("buildah"), *options]
    tree = make_tree(folder / "buildah-tree")
    (tree / "data/fifo").unlink()  # buildah's copier refuses FIFOs
    name = call(*buildah, "from", "scratch").strip()
    call(*buildah, "add", "--quiet", name, str(tree), "/")
    call(*buildah, "config", "--cmd", '["/bin/echo","hello from buildah"]', "--user", "app", name)
    layout = folder / "buildah-layout"
    call(*buildah, "commit", "--disable-compression", "--format", "oci", "--quiet", name, f"oci:{layout}:one")
    call(*buildah, "rm", name)
    return f"oci:{layout}:one"


class Docker:
    """A dockerd of our own on its own socket and folders, ended by pid."""

    def __init__(self, folder: Path, *options: str) -> None:
        if os.geteuid() != 0:
            raise Missing("dockerd needs root")
        self.socket = f"unix://{folder / 'docker.sock'}"
        self.client = tool("docker")
        self.log = (folder / "dockerd.log").open("w")
        places = ["--data-root", str(folder / "docker"), "--exec-root", str(folder / "docker-run")]
        places += ["-H", self.socket, "--pidfile", str(folder / "docker.pid")]
        self.daemon = subprocess.Popen(
            [tool("dockerd"), *places, "--iptables=false", "--bridge=none", "--storage-driver", "vfs", *options],
            stdout=self.log,
            stderr=self.log,
        )
        for _ in range(300):
            if self.daemon.poll() is not None:
                break
            if (
                subprocess.run([self.client, "-H", self.socket, "info"], capture_output=True, check=False).returncode
                == 0
            ):
                return
            time.sleep(0.1)
        self.close()
        raise Missing("dockerd does not start here")

    def __call__(self, *words: str) -> str:
        return call(self.client, "-H", self.socket, *words)

    def close(self) -> None:
        self.daemon.terminate()
        try:
            self.daemon.wait(30)
        except subprocess.TimeoutExpired:
            self.daemon.kill()
            self.daemon.wait()
        self.log.close()


def with_docker(folder: Path) -> str:
    """docker import, then docker save."""
    tree = make_tree(folder / "docker-tree")
    tarball = folder / "docker-import.tar"
    call("tar", "--xattrs", "--xattrs-include=*", "-C", str(tree), "-cf", str(tarball), ".")
    docker = Docker(folder)
    try:
        docker(
            "import",
            "--change",
            'CMD ["/bin/echo","hello from docker"]',
            "--change",
            "ENV A=1",
            str(tarball),
            "example.com/imported:1",
        )
        docker("save", "-o", str(folder / "docker-save.tar"), "example.com/imported:1")
    finally:
        docker.close()
    return f"docker-archive:{folder / 'docker-save.tar'}"


class Registry:
    """Debian's docker-registry 2.8 on a free loopback port, with or without htpasswd; ended by pid."""

    def __init__(self, folder: Path, *, password: str | None = None) -> None:
        import socket  # only here

        binary = tool("docker-registry")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.host = f"127.0.0.1:{self.port}"
        folder.mkdir(parents=True, exist_ok=True)
        config: dict[str, object] = {
            "version": "0.1",
            "storage": {"filesystem": {"rootdirectory": str(folder / "data")}, "delete": {"enabled": True}},
            "http": {"addr": self.host},
            "log": {"level": "error"},
        }
        if password is not None:
            line = call(tool("htpasswd"), "-nbB", "user", password).strip()
            (folder / "htpasswd").write_text(line + "\n")
            config["auth"] = {"htpasswd": {"realm": "test", "path": str(folder / "htpasswd")}}
        (folder / "config.yml").write_text(json.dumps(config))  # JSON is YAML
        self.log = (folder / "log").open("w")
        self.process = subprocess.Popen([binary, "serve", str(folder / "config.yml")], stdout=self.log, stderr=self.log)
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        self.close()
        raise Missing("docker-registry does not start here")

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(10)
        self.log.close()


def tree_facts(root: Path) -> dict[str, tuple[object, ...]]:
    """Every entry below ``root``: mode, owner, size, mtime (ns), link target and count, device, xattrs, content."""
    import hashlib
    import stat

    facts: dict[str, tuple[object, ...]] = {}
    for folder, folders, files in os.walk(os.fsencode(root)):
        for name in [b"."] * (folder == os.fsencode(root)) + folders + files:
            path = os.path.join(folder, name)
            info = os.lstat(path)
            kind = stat.S_IFMT(info.st_mode)
            content = target = ""
            if kind == stat.S_IFREG:
                with open(path, "rb") as file:
                    content = hashlib.file_digest(file, "sha256").hexdigest()
            elif kind == stat.S_IFLNK:
                target = os.fsdecode(os.readlink(path))
            names = sorted(os.listxattr(path, follow_symlinks=False))
            xattrs = tuple((n, os.getxattr(path, n, follow_symlinks=False)) for n in names)
            links = info.st_nlink if kind != stat.S_IFDIR else 0
            size = info.st_size if kind == stat.S_IFREG else 0
            device = info.st_rdev if kind in (stat.S_IFCHR, stat.S_IFBLK) else 0
            relative = os.fsdecode(os.path.relpath(path, os.fsencode(root)))
            owner = (oct(info.st_mode), info.st_uid, info.st_gid)
            facts[relative] = (*owner, size, info.st_mtime_ns, target, links, device, xattrs, content)
    return facts
