"""Bad input: one clear sentence, an exit code that is not 0, and nothing left behind."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import foreign
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Cli = Callable[..., subprocess.CompletedProcess[str]]


def leftovers(folder: Path) -> list[str]:
    """What a failed command may not leave: files (but locks and the empty layout) and container state."""
    kept = ("store/oci-layout", "store/index.json", "store/snapshots/map.json")
    found = []
    for part in ("store", "state"):
        for path, _, files in os.walk(folder / part):
            names = [os.path.relpath(os.path.join(path, name), folder) for name in files]
            names = [name for name in names if not name.startswith("store/host/")]  # kept on purpose: what host: hides
            found += [name for name in names if name not in kept and "lock" not in name and not whole(folder / name)]
    return found


def whole(path: Path) -> bool:
    """Whether it is a blob with its own digest: a retry need not fetch it again, and gc removes it."""
    return path.parent.name == "sha256" and hashlib.sha256(path.read_bytes()).hexdigest() == path.name


def refused(done: subprocess.CompletedProcess[str], *words: str, code: int | None = None) -> None:
    """One sentence on stderr that has these words; no traceback."""
    assert done.returncode != 0, done.stdout
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    for word in words:
        assert word.lower() in done.stderr.lower(), f"{word!r} is not in: {done.stderr}"
    if code is not None:
        assert done.returncode == code, done.stderr


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A minimal image of one plain layer, made by hand so that every level can be bent."""
    folder = tmp_path_factory.mktemp("layout")
    build(folder)
    return folder


def build(folder: Path, *, layer: bytes | None = None, **bend: Any) -> Path:
    """Write an OCI layout; ``bend`` changes one thing: what is then wrong is in the name."""
    tree = folder / "tree"
    try:
        foreign.make_tree(tree)
    except foreign.Missing as error:
        pytest.skip(str(error))
    blobs = folder / "blobs/sha256"
    blobs.mkdir(parents=True)
    if layer is None:
        layer = subprocess.run(["tar", "-C", str(tree), "-cf", "-", "."], capture_output=True, check=True).stdout
    shutil.rmtree(tree)

    def blob(data: bytes, media: str, **fields: object) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"mediaType": media, "digest": f"sha256:{digest}", "size": len(data), **fields}

    arch = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
    config = {
        "architecture": bend.get("architecture", arch),
        "os": "linux",
        "config": {"Cmd": ["/bin/echo", "fine"], "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [bend.get("diff_id", f"sha256:{hashlib.sha256(layer).hexdigest()}")]},
    }
    layer_media = str(bend.get("layer_media", "application/vnd.oci.image.layer.v1.tar"))
    manifest = {
        "schemaVersion": bend.get("schema", 2),
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": blob(
            json.dumps(config).encode(), "application/vnd.oci.image.config.v1+json", **bend.get("config", {})
        ),
        "layers": [blob(layer, layer_media, **bend.get("layer_descriptor", {}))],
    }
    platform = {"architecture": bend.get("architecture", arch), "os": "linux"}
    top = blob(
        json.dumps(manifest).encode(),
        str(bend.get("manifest_media", manifest["mediaType"])),
        **bend.get("manifest", {}),
    )
    top |= {"platform": platform, "annotations": {"org.opencontainers.image.ref.name": "good"}}
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [top]}))
    (folder / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    if "damage" in bend:  # flip a byte of this blob
        victim = blobs / str(manifest[str(bend["damage"])]["digest"]).removeprefix("sha256:")
        data = bytearray(victim.read_bytes())
        data[len(data) // 2] ^= 1
        victim.write_bytes(data)
    return folder


def test_the_unbent_image_runs(layout: Path, cli: Cli) -> None:
    done = cli("run", "--rm", f"oci:{layout}:good")
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("library/UPPER:1", ["invalid reference", "capital"]),
        ("name:tag:tag", ["invalid reference"]),
        ("name@sha256:short", ["sha256"]),
        ("", ["reference"]),
        ("oci:", ["oci:"]),
    ],
)
def test_malformed_references(reference: str, words: list[str], cli: Cli) -> None:
    refused(cli("run", reference, "true"), *words, code=125)


def test_unknown_places_and_tags(layout: Path, cli: Cli) -> None:
    refused(cli("run", "oci:/nonexistent/dir:1"), "/nonexistent/dir")
    refused(cli("run", f"oci:{layout}:nope"), "nope", "there is good")
    refused(cli("run", "docker-archive:/nonexistent.tar"), "/nonexistent.tar")
    refused(cli("run", "--pull", "never", "example.com/not/there:1"), "example.com/not/there:1")
    assert leftovers(cli.folder) == []  # type: ignore[attr-defined]


BENT: dict[str, tuple[dict[str, Any], list[str]]] = {
    "wrong platform": ({"architecture": "s390x"}, ["linux/s390x"]),
    "layer digest": ({"damage": "layers_0"}, ["digest"]),
    "config digest": ({"damage": "config"}, ["digest"]),
    "layer size": ({"layer_descriptor": {"size": 5}}, ["bytes, expected 5"]),
    "manifest size": ({"manifest": {"size": 7}}, ["bytes, expected 7"]),
    "config size": ({"config": {"size": 9}}, ["bytes, expected 9"]),
    "diff id": ({"diff_id": "sha256:" + "0" * 64}, ["digest", "0" * 64]),
    "schema 1": ({"schema": 1}, ["schema 1"]),
    "unknown layer type": ({"layer_media": "application/x-rar"}, ["application/x-rar"]),
    "unknown manifest type": ({"manifest_media": "text/plain"}, ["text/plain"]),
    "gzip that is none": ({"layer_media": "application/vnd.oci.image.layer.v1.tar+gzip"}, ["gzip"]),
    "not a tar": ({"layer": b"no tar at all" * 100}, ["tar"]),
}


@pytest.mark.parametrize("name", BENT)
def test_bent_images(name: str, cli: Cli, tmp_path: Path) -> None:
    bend, words = BENT[name]
    if bend.get("damage") == "layers_0":
        folder = build(tmp_path / "image")
        manifest = json.loads((folder / "index.json").read_text())["manifests"][0]["digest"].removeprefix("sha256:")
        digest = json.loads((folder / "blobs/sha256" / manifest).read_text())["layers"][0]["digest"].removeprefix(
            "sha256:"
        )
        blob = folder / "blobs/sha256" / digest
        blob.write_bytes(blob.read_bytes()[:-1] + b"x")
    else:
        folder = build(tmp_path / "image", **bend)
    refused(cli("run", "--rm", f"oci:{folder}:good", "true"), *words, code=125)
    assert leftovers(cli.folder) == []  # type: ignore[attr-defined]


@pytest.mark.parametrize("cut", [-1, -700, 100])
def test_truncated_and_trailing_layer_bytes(cut: int, layout: Path, cli: Cli, tmp_path: Path) -> None:
    plain = next(path for path in (layout / "blobs/sha256").iterdir() if path.stat().st_size > 100_000).read_bytes()
    import gzip

    packed = gzip.compress(plain, 1)
    layer = packed[:cut] if cut < 0 else packed + b"\1" * cut
    folder = build(
        tmp_path / "image",
        layer=layer,
        layer_media="application/vnd.oci.image.layer.v1.tar+gzip",
        diff_id=f"sha256:{hashlib.sha256(plain).hexdigest()}",
    )
    refused(cli("run", "--rm", f"oci:{folder}:good", "true"), "gzip", code=125)
    assert leftovers(cli.folder) == []  # type: ignore[attr-defined]


def in_private_mounts(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a shell script in a mount namespace of its own; ``folder`` is made for it and removed."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    (folder / "store").mkdir(parents=True)
    try:
        return subprocess.run(["unshare", "-m", "sh", "-ec", script], capture_output=True, text=True, check=False)
    finally:
        shutil.rmtree(folder)


def test_a_full_disk(layout: Path, knarr: str) -> None:
    folder = Path("/tmp") / f"knarr-full-{secrets.token_hex(4)}"
    command = f"{knarr} --store {folder}/store --run-dir {folder}/run run oci:{layout}:good"
    script = f"mount -t tmpfs -o size=1m tmpfs {folder}; {command} || code=$?; find {folder} -type f; exit $code"
    done = in_private_mounts(script, folder)
    refused(done, "no space left", code=125)
    files = [line for line in done.stdout.splitlines() if "lock" not in line]
    blobs = [line for line in files if "/blobs/sha256/" in line]
    assert len(blobs) <= 2  # config and manifest, whole; the layer does not fit
    assert {os.path.basename(line) for line in files if line not in blobs} <= {"oci-layout", "index.json", "map.json"}


@pytest.mark.parametrize("driver", ["erofs-loop", "overlay", "copy"])
def test_a_layer_of_200_kilobytes_that_unpacks_to_200_megabytes(driver: str, knarr: str, tmp_path: Path) -> None:
    if driver == "erofs-loop" and not os.path.exists("/dev/loop-control"):
        pytest.skip("there are no loop devices here")
    member = tarfile.TarInfo("zeros")
    member.size = 200 << 20
    coder = zlib.compressobj(9, zlib.DEFLATED, 31)
    plain = [member.tobuf(), *[bytes(1 << 20)] * 200, bytes(1024)]
    layer = b"".join([*map(coder.compress, plain), coder.flush()])
    assert len(layer) < 250_000
    diff_id = hashlib.sha256()
    for part in plain:
        diff_id.update(part)
    made = build(
        tmp_path / "image",
        layer=layer,
        layer_media="application/vnd.oci.image.layer.v1.tar+gzip",
        diff_id=f"sha256:{diff_id.hexdigest()}",
    )
    folder = Path("/tmp") / f"knarr-bomb-{secrets.token_hex(4)}"
    command = f"KNARR_DRIVER={driver} {knarr} --store {folder}/store --run-dir {folder}/run pull -q oci:{made}:good"
    script = (
        f"mount -t tmpfs -o size=16m tmpfs {folder}; {command} || code=$?; df --output=used -k {folder}; exit $code"
    )
    done = in_private_mounts(script, folder)
    refused(done, "no space left", code=125)
    assert int(done.stdout.split()[-1]) < 1024  # kilobytes: the layer as it came, and nothing that came out of it


def test_a_read_only_store(layout: Path, knarr: str) -> None:
    folder = Path("/tmp") / f"knarr-ro-{secrets.token_hex(4)}"
    command = f"{knarr} --store {folder}/store --run-dir {folder}/run pull oci:{layout}:good"
    done = in_private_mounts(f"mount --bind {folder} {folder}; mount -o remount,bind,ro {folder}; {command}", folder)
    refused(done, "read-only", code=125)


S390_PROGRAM = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00\x16\x00" + bytes(100)
PROGRAMS = {
    "missing": ("nosuchprogram", None, 127, ["nosuchprogram"]),
    "missing path": ("/no/such/file", None, 127, ["/no/such/file"]),
    "no x bit": ("/prog", (b"#!/bin/sh\n", 0o644), 126, ["permission"]),
    "missing interpreter": ("/prog", (b"#!/bin/nosuch\n", 0o755), 126, ["/bin/nosuch"]),
    "windows line ends": ("/prog", (b"#!/bin/sh\r\necho\r\n", 0o755), 126, ["carriage return"]),
    "a directory": ("/bin", None, 126, ["directory"]),
    "other architecture": (
        "/prog",
        (b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00\x16\x00" + bytes(100), 0o755),
        126,
        ["s390"],
    ),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_that_cannot_run(name: str, layout: Path, cli: Cli, tmp_path: Path) -> None:
    command, file, code, words = PROGRAMS[name]
    mount = []
    if file:
        (tmp_path / "prog").write_bytes(file[0])
        (tmp_path / "prog").chmod(file[1])
        mount = ["-v", f"{tmp_path / 'prog'}:/prog"]
    done = cli("run", "--rm", *mount, f"oci:{layout}:good", command)
    refused(done, *words, code=code)
    assert cli("ps", "-a", "--format", "json").stdout.strip() in ("[]", "")


def test_a_noexec_mount_is_named(layout: Path, cli: Cli, tmp_path: Path) -> None:
    shutil.copy(next(path for path in foreign.BUSYBOX if os.path.exists(path)), tmp_path / "busybox")
    bind = f"type=bind,source={tmp_path},target=/mnt,noexec"
    refused(cli("run", "--rm", "--mount", bind, f"oci:{layout}:good", "/mnt/busybox"), "noexec", code=126)


def test_names_that_are_taken_or_unknown(layout: Path, cli: Cli) -> None:
    assert cli("run", "--name", "one", f"oci:{layout}:good").returncode == 0
    refused(cli("run", "--name", "one", f"oci:{layout}:good"), "one", "already exists", code=125)
    refused(cli("run", "--name", "../x", f"oci:{layout}:good"), "../x", code=125)
    refused(cli("rm", "nobody"), "nobody")
    refused(cli("exec", "one", "true"), "one")
    assert cli("rm", "one").returncode == 0
    refused(cli("inspect", "one"), "one")


BAD_WORDS = """
run
run --nosuch x
run --memory much host: true
run --cpus -1 host: true
run --network moon host: true
run -v relative:/x host: true
run -v /tmp:/proc host: true
run --cap-add FLY host: true
run -u +0 host: true
run --platform x host: true
run --env-file /nonexistent host: true
run --security-opt seccomp=/nonexistent host: true
run --ulimit x=1 host: true
nosuch
kill -s NOSUCH x
info --format {{.Nope}}
"""


@pytest.mark.parametrize("words", [line.split() for line in BAD_WORDS.strip().splitlines()], ids=" ".join)
def test_bad_words_on_the_command_line(words: list[str], cli: Cli) -> None:
    refused(cli(*words))
    assert leftovers(cli.folder) == []  # type: ignore[attr-defined]


@pytest.fixture
def silent_server() -> Iterator[int]:
    """A loopback port that accepts and never answers."""
    code = (
        "import socket, time; s = socket.create_server(('127.0.0.1', 0)); "
        "print(s.getsockname()[1], flush=True); time.sleep(300)"
    )
    server = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    yield int(server.stdout.readline())
    server.kill()
    server.communicate()


def test_a_registry_that_is_down(cli: Cli) -> None:
    refused(cli("pull", "127.0.0.1:1/x/y:1"), "127.0.0.1:1", "connection refused")


def test_ctrl_c_while_a_registry_is_silent(silent_server: int, knarr: str, cli: Cli) -> None:
    folder = cli.folder  # type: ignore[attr-defined]
    pull = subprocess.Popen(
        [
            knarr,
            "--store",
            str(folder / "store"),
            "--run-dir",
            str(folder / "state"),
            "pull",
            f"127.0.0.1:{silent_server}/x/y:1",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    time.sleep(1)
    pull.send_signal(signal.SIGINT)
    _, said = pull.communicate(timeout=10)
    assert pull.returncode == 130
    assert "Traceback" not in said
    assert leftovers(folder) == []


def test_ctrl_c_ends_a_container_and_leaves_nothing(layout: Path, knarr: str, cli: Cli) -> None:
    folder = cli.folder  # type: ignore[attr-defined]
    run = subprocess.Popen(
        [
            knarr,
            "--store",
            str(folder / "store"),
            "--run-dir",
            str(folder / "state"),
            "run",
            "--rm",
            f"oci:{layout}:good",
            "sleep",
            "100",
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for _ in range(100):
        if '"running"' in cli("ps", "--format", "json").stdout.lower():
            break
        time.sleep(0.1)
    run.send_signal(signal.SIGINT)
    time.sleep(0.3)
    run.send_signal(signal.SIGINT)
    run.send_signal(signal.SIGTERM)
    try:
        _, said = run.communicate(timeout=15)
    except subprocess.TimeoutExpired:
        run.kill()
        raise
    assert "Traceback" not in said
    assert run.returncode != 0
    assert cli("ps", "-a", "--format", "json").stdout.strip() in ("[]", "")
