"""Images of umoci, buildah, skopeo and docker: run, unpacked, compared with `umoci unpack`, pulled."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import foreign
import pytest

Cli = Callable[..., subprocess.CompletedProcess[str]]
TWO_LAYERS = ["umoci", "skopeo-zstd", "skopeo-docker-archive", "skopeo-oci-archive"]
LOOK = (
    "cat /etc/second; ls /gone/dir; test -e /data/lower-only && echo still there; "
    "stat -c %h /data/file; stat -c %a /data/setuid; pwd"
)
SEEN = "2\nnew\n3\n4755\n/data\n"


@pytest.mark.parametrize("made_by", TWO_LAYERS)
def test_run_gives_the_right_output(made_by: str, image_of: Callable[[str], str], cli: Cli) -> None:
    reference = image_of(made_by)
    default = cli("run", "--rm", reference)
    assert (default.returncode, default.stdout) == (0, "hello from umoci\n"), default.stderr
    looked = cli("run", "--rm", reference, "sh", "-c", LOOK)
    assert (looked.returncode, looked.stdout) == (0, SEEN), looked.stderr


def test_run_as_the_user_buildah_configured(image_of: Callable[[str], str], cli: Cli) -> None:
    reference = image_of("buildah")
    assert cli("run", "--rm", reference).stdout == "hello from buildah\n"
    who = cli("run", "--rm", reference, "id")
    assert who.stdout == "uid=1000(app) gid=1000(app) groups=1000(app),1001(extra)\n", who.stderr


def test_run_docker_import_and_save(image_of: Callable[[str], str], cli: Cli) -> None:
    reference = image_of("docker")
    assert cli("run", "--rm", reference).stdout == "hello from docker\n"
    assert "A=1\n" in cli("run", "--rm", reference, "env").stdout


@pytest.mark.parametrize("made_by", TWO_LAYERS)
def test_the_unpacked_tree_equals_umocis(
    made_by: str, image_of: Callable[[str], str], cli: Cli, tmp_path: Path
) -> None:
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    foreign.call(foreign.tool("umoci"), "unpack", "--image", image_of("umoci").removeprefix("oci:"), str(theirs))
    done = cli("unpack", image_of(made_by), str(ours))
    assert done.returncode == 0, done.stderr
    expected, seen = foreign.tree_facts(theirs / "rootfs"), foreign.tree_facts(ours)
    # The root directory is not an entry of these layers; its time is when it was unpacked.
    expected.pop("."), seen.pop(".")
    assert seen == expected


@pytest.mark.parametrize("password", [None, "s3cret"])
def test_pull_from_a_real_registry(
    password: str | None, image_of: Callable[[str], str], cli: Cli, tmp_path: Path
) -> None:
    source = image_of("umoci")
    try:
        registry = foreign.Registry(tmp_path / "registry", password=password)
    except foreign.Missing as error:
        pytest.skip(str(error))
    try:
        reference = f"{registry.host}/some/two:1"
        login = ["--dest-creds", f"user:{password}"] if password else []
        foreign.call(
            foreign.tool("skopeo"),
            "--insecure-policy",
            "copy",
            "--dest-tls-verify=false",
            *login,
            source,
            f"docker://{reference}",
        )
        extra = {}
        if password:
            refused = cli("pull", reference)
            assert refused.returncode != 0
            assert "401" in refused.stderr
            assert "Traceback" not in refused.stderr
            docker = tmp_path / "docker"
            docker.mkdir()
            pair = base64.b64encode(f"user:{password}".encode()).decode()
            (docker / "config.json").write_text(json.dumps({"auths": {registry.host: {"auth": pair}}}))
            extra = {"DOCKER_CONFIG": str(docker)}
        pulled = cli("pull", reference, env=extra)
        assert pulled.returncode == 0, pulled.stderr
        assert (password or "nothing") not in pulled.stderr + pulled.stdout
        ran = cli("run", "--rm", reference, "sh", "-c", LOOK)
        assert (ran.returncode, ran.stdout) == (0, SEEN), ran.stderr
        missing = cli("pull", f"{registry.host}/some/two:2", env=extra)
        assert missing.returncode != 0
        assert "there is 1" in missing.stderr, missing.stderr
    finally:
        registry.close()


def test_other_tools_read_our_store(image_of: Callable[[str], str], cli: Cli, tmp_path: Path) -> None:
    assert cli("pull", image_of("umoci")).returncode == 0
    store = cli.folder / "store"  # type: ignore[attr-defined]
    names = json.loads((store / "index.json").read_text())["manifests"]
    name = names[0]["annotations"]["org.opencontainers.image.ref.name"]
    said = foreign.call(foreign.tool("skopeo"), "inspect", f"oci:{store}:{name}")
    assert len(json.loads(said)["Layers"]) == 2
    if "/" not in name:  # umoci 0.4.7 knows no "/" in a tag
        foreign.call(foreign.tool("umoci"), "unpack", "--image", f"{store}:{name}", str(tmp_path / "again"))


def test_a_debian_from_mmdebstrap(cli: Cli, workshop: Path) -> None:
    """The real thing: thousands of entries, capabilities, setuid programs; as gzip by umoci, as zstd by skopeo."""
    if os.geteuid() != 0:
        pytest.skip("a Debian with its owners is made as root")
    cache = Path(os.environ.get("KNARR_TEST_CACHE", "/var/tmp/knarr-test-cache"))
    cache.mkdir(parents=True, exist_ok=True)
    tarball = cache / "debian-minbase.tar"
    try:
        if not tarball.exists():
            part = cache / "debian-minbase.part.tar"
            foreign.call(
                foreign.tool("mmdebstrap"),
                "--variant=minbase",
                "--include=libcap2-bin,iputils-ping",
                "bookworm",
                str(part),
                timeout=400,
            )
            part.rename(tarball)
        umoci, layout, bundle = foreign.tool("umoci"), workshop / "debian", workshop / "debian-bundle"
        foreign.call(umoci, "init", "--layout", str(layout))
        foreign.call(umoci, "new", "--image", f"{layout}:bookworm")
        foreign.call(umoci, "unpack", "--image", f"{layout}:bookworm", str(bundle))
        foreign.call("tar", "--xattrs", "--xattrs-include=*", "-C", str(bundle / "rootfs"), "-xf", str(tarball))
        foreign.call(umoci, "repack", "--image", f"{layout}:bookworm", str(bundle))
        shutil.rmtree(bundle)
        zstd = foreign.with_skopeo(workshop, f"oci:{layout}:bookworm", "zstd")
    except (foreign.Missing, subprocess.TimeoutExpired) as error:
        pytest.skip(str(error))
    script = "cat /etc/debian_version; dpkg -s bash | grep ^Status; stat -c %a /usr/bin/passwd; getcap /usr/bin/ping"
    for reference in (f"oci:{layout}:bookworm", zstd):
        ran = cli("run", "--rm", reference, "sh", "-c", script, timeout=300)
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout.splitlines()[1:] == ["Status: install ok installed", "4755", "/usr/bin/ping cap_net_raw=ep"]
    theirs, ours = workshop / "debian-theirs", workshop / "debian-ours"
    foreign.call(umoci, "unpack", "--image", f"{layout}:bookworm", str(theirs))
    assert cli("unpack", f"oci:{layout}:bookworm", str(ours)).returncode == 0
    expected, seen = foreign.tree_facts(theirs / "rootfs"), foreign.tree_facts(ours)
    expected.pop("."), seen.pop(".")
    assert len(seen) > 5000
    different = {name for name in expected.keys() | seen.keys() if expected.get(name) != seen.get(name)}
    assert not different, [(name, expected.get(name), seen.get(name)) for name in sorted(different)[:5]]
    shutil.rmtree(theirs)
    shutil.rmtree(ours)
