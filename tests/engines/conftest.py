"""What the engines' tests share: an image made without the internet, and both runtimes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from enginebox import need

BUSYBOX = next((path for path in ("/bin/busybox", "/usr/bin/busybox") if os.path.exists(path)), "busybox")
PASSWD = (
    "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000:app:/home/app:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"
)
GROUP = "root:x:0:\napp:x:1000:\nextra:x:2000:app\nnogroup:x:65534:\n"


@pytest.fixture(scope="session")
def image_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root file system: busybox under all its names, users, a directory for a volume."""
    need("busybox")
    root = tmp_path_factory.mktemp("image") / "rootfs"
    for name in ("bin", "etc", "root", "tmp", "data", "home/app", "var/empty", "proc", "sys", "dev", "run"):
        (root / name).mkdir(parents=True)
    shutil.copy(BUSYBOX, root / "bin/busybox")
    for applet in subprocess.run([BUSYBOX, "--list"], capture_output=True, text=True, check=True).stdout.split():
        if applet != "busybox":
            (root / "bin" / applet).symlink_to("busybox")
    (root / "etc/passwd").write_text(PASSWD)
    (root / "etc/group").write_text(GROUP)
    (root / "data/seed").write_text("from the image\n")
    (root / "etc/not-a-program").write_text("text\n")
    os.chmod(root / "tmp", 0o1777)
    os.chown(root / "home/app", 1000, 1000)
    os.chown(root / "data", 1000, 1000)
    return root


@pytest.fixture(scope="session")
def image_layout(image_tree: Path) -> Path:
    """The image as an OCI layout, tagged ``small``, written by umoci."""
    need("umoci", "skopeo")
    layout = image_tree.parent / "layout"
    for words in (
        ("init", "--layout", str(layout)),
        ("new", "--image", f"{layout}:small"),
        ("insert", "--image", f"{layout}:small", str(image_tree), "/"),
        (
            "config",
            "--image",
            f"{layout}:small",
            "--config.cmd",
            "sh",
            "--config.env",
            "PATH=/bin",
            "--config.env",
            "FROM=image",
        ),
    ):
        subprocess.run(["umoci", *words], check=True, capture_output=True)
    return layout


@pytest.fixture(scope="session")
def docker_archive(image_layout: Path) -> Path:
    return converted(image_layout, "docker-archive", "small:latest")


@pytest.fixture(scope="session")
def oci_archive(image_layout: Path) -> Path:
    return converted(image_layout, "oci-archive", "small")


def converted(layout: Path, transport: str, name: str) -> Path:
    path = layout.parent / f"{transport}.tar"
    words = ["skopeo", "--insecure-policy", "copy", "-q", f"oci:{layout}:small", f"{transport}:{path}:{name}"]
    subprocess.run(words, check=True, capture_output=True)
    return path


@pytest.fixture(scope="session")
def runtimes() -> dict[str, str]:
    """runc, which every script runs with first, and ours.

    KNARR_TEST_RUNTIME puts another in our place: runc itself must make no difference (docs/engines.md).
    """
    need("runc")
    ours = os.environ.get("KNARR_TEST_RUNTIME") or str(Path(sys.prefix, "bin", "knarr-runtime"))
    if not os.path.exists(ours):
        pytest.skip(f"knarr-runtime is not installed in {sys.prefix} (make build)")
    return {"runc": shutil.which("runc") or "runc", "knarr": ours}
