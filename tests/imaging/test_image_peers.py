"""Other people's tools read what we change, and make the same trees of it."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
from imagekit import call, flat, layout, opened, paths, program
from tarbuilder import d, f, h, s, x
from trees import differences, needs_root, tree

from knarr.engine.imaging.compare import diff
from knarr.engine.imaging.image import Image, Index
from knarr.engine.imaging.pack import repack, unpack
from knarr.engine.imaging.validate import validate

sys.path.append(str(Path(__file__).parents[1] / "e2e"))
import foreign  # it lies beside the end-to-end tests  # pyright: ignore[reportMissingImports]

pytestmark = needs_root

STACK = [
    [
        d("./", mtime=5), d("etc", 0o751, uid=3), f("etc/a", b"one", uid=1000, gid=7), f("etc/b", b"bb", mode=0o4755),
        d("usr"), d("usr/bin"), s("bin", "usr/bin"), f("usr/bin/x", b"X" * 90_000), h("usr/bin/y", "usr/bin/x"),
        x(("SCHILY.xattr.user.k", "v")) + f("attr"), f("with space\n", b"1"),
    ],
    [f("etc/.wh.b"), f("etc/a", b"two!"), d("opt"), f("opt/z", b"z" * 5000), h("opt/zz", "opt/z"), f("gone")],
    [f(".wh.gone"), d("etc"), f("etc/.wh..wh..opq"), f("etc/only", b"o")],
]  # fmt: skip


def with_umoci(ref: str, path: Path) -> dict[str, object]:
    """The tree umoci unpacks."""
    _oci, folder, tag = ref.split(":")
    call(program("umoci"), "unpack", "--image", f"{folder}:{tag}", str(path))
    found = tree(str(path / "rootfs"))
    shutil.rmtree(path)
    return found  # type: ignore[return-value]


def with_knarr(ref: str, path: Path) -> dict[str, object]:
    unpack(Image.open(ref), str(path))
    found = tree(str(path))
    shutil.rmtree(path)
    return found  # type: ignore[return-value]


def same(ref: str, tmp_path: Path) -> None:
    """Sound, and one tree for umoci and for us."""
    assert [str(finding) for finding in validate(ref)] == []
    theirs, ours = with_umoci(ref, tmp_path / "theirs"), with_knarr(ref, tmp_path / "ours")
    assert differences(theirs, ours) == []  # type: ignore[arg-type]


def changed(image: Image, tmp_path: Path) -> dict[str, Image]:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "n").write_bytes(b"n" * 3000)
    os.link(tmp_path / "src" / "n", tmp_path / "src" / "m")
    return {
        "config": image.with_config(env={"A": "1"}, user="1", labels={"l": "v"}, cmd=["x"]),
        "add": image.add(str(tmp_path / "src"), "/bin/"),
        "remove": image.remove(["/bin/x", "/opt"]),
        "squash": image.squash(),
        "squash from 1": image.squash(1),
        "zstd": image.squash(compression="zstd"),
        "append": image.remove(["etc"]).add(str(tmp_path / "src"), "/etc", compression="none"),
    }


def test_umoci_makes_the_same_trees(tmp_path: Path) -> None:
    image = opened(tmp_path / "l", *STACK)
    same(f"oci:{tmp_path}/l:v1", tmp_path)
    for name, made in changed(image, tmp_path).items():
        tag = name.replace(" ", "-")
        made.save(f"oci:{tmp_path}/l:{tag}")
        if name != "zstd":  # umoci 0.4.7 has no zstd
            same(f"oci:{tmp_path}/l:{tag}", tmp_path)
        assert call(program("skopeo"), "inspect", f"oci:{tmp_path}/l:{tag}")
    before = with_knarr(f"oci:{tmp_path}/l:v1", tmp_path / "before")
    for tag in ("squash", "squash-from-1", "zstd"):
        assert differences(with_knarr(f"oci:{tmp_path}/l:{tag}", tmp_path / "after"), before) == []  # type: ignore[arg-type]
    assert call(program("umoci"), "ls", "--layout", str(tmp_path / "l")).split()


def test_repacked_by_umoci_and_by_us(tmp_path: Path) -> None:
    """The same change to the same bundle: the layers differ in form, the trees do not."""
    ref = layout(tmp_path / "l", *STACK)
    call(program("umoci"), "unpack", "--image", f"{tmp_path}/l:v1", str(tmp_path / "theirs"))
    unpack(Image.open(ref), str(tmp_path / "ours"))
    for root in (tmp_path / "theirs" / "rootfs", tmp_path / "ours"):
        (root / "etc" / "new").write_bytes(b"n")
        (root / "usr/bin/x").unlink()
        shutil.rmtree(root / "opt")
        (root / "opt").symlink_to("etc")
        (root / "attr").chmod(0o600)
        for path in ("etc/new", "opt", "etc", "usr/bin", "."):
            os.utime(root / path, ns=(10**18, 10**18), follow_symlinks=False)
    call(program("umoci"), "repack", "--image", f"{tmp_path}/l:theirs", str(tmp_path / "theirs"))
    repack(str(tmp_path / "ours")).image.save(f"oci:{tmp_path}/l:ours")
    same(f"oci:{tmp_path}/l:ours", tmp_path / "x")
    one, two = (with_knarr(f"oci:{tmp_path}/l:{tag}", tmp_path / "t") for tag in ("theirs", "ours"))
    assert differences(one, two) == []  # type: ignore[arg-type]
    # and what umoci unpacked we can pack as well
    done = repack(str(tmp_path / "theirs"), base=f"oci:{tmp_path}/l:ours")
    assert (done.made, done.hidden) == (0, 0)


def test_umoci_raw_tools_read_our_config(tmp_path: Path) -> None:
    image = opened(tmp_path / "l", *STACK).with_config(
        env={"A": "1"},
        labels={"l": "v"},
        ports={"80/tcp": True},
        volumes={"/d": True},
        stop_signal="SIGINT",
        author="me",
    )
    image.save(f"oci:{tmp_path}/l:v2")
    told = json.loads(call(program("skopeo"), "inspect", "--config", f"oci:{tmp_path}/l:v2"))
    assert told["config"]["Env"] == ["PATH=/bin", "A=1"]
    assert told["config"]["StopSignal"] == "SIGINT"
    assert told["author"] == "me"
    call(program("umoci"), "config", "--image", f"{tmp_path}/l:v2", "--config.user", "5:6", "--author", "you")
    theirs = Image.open(f"oci:{tmp_path}/l:v2")
    assert (theirs.config or {})["config"]["User"] == "5:6"
    ours = image.with_config(user="5:6", author="you")
    assert (theirs.config or {})["config"] == (ours.config or {})["config"]
    call(program("umoci"), "raw", "runtime-config", "--image", f"{tmp_path}/l:v2", str(tmp_path / "config.json"))
    assert json.loads((tmp_path / "config.json").read_bytes())["process"]["user"]["uid"] == 5


def test_umoci_insert_and_ours(tmp_path: Path) -> None:
    ref = layout(tmp_path / "l", *STACK)
    (tmp_path / "src" / "e").mkdir(parents=True)
    (tmp_path / "src" / "e" / "f").write_bytes(b"f")
    for path in ("e/f", "e", "."):
        os.utime(tmp_path / "src" / path, (10**9, 10**9))  # umoci writes whole seconds
    call(program("umoci"), "insert", "--image", f"{tmp_path}/l:v1", "--tag", "theirs", str(tmp_path / "src"), "/srv/d")
    Image.open(ref).add(str(tmp_path / "src"), "/srv/d", owner=None).save(f"oci:{tmp_path}/l:ours")
    one, two = (with_knarr(f"oci:{tmp_path}/l:{tag}", tmp_path / "t") for tag in ("theirs", "ours"))
    assert differences(one, two) == []  # type: ignore[arg-type]
    call(program("umoci"), "insert", "--whiteout", "--image", f"{tmp_path}/l:v1", "--tag", "t2", "/usr/bin/x")
    Image.open(ref).remove(["/usr/bin/x"]).save(f"oci:{tmp_path}/l:o2")
    one, two = (with_knarr(f"oci:{tmp_path}/l:{tag}", tmp_path / "t") for tag in ("t2", "o2"))
    assert differences(one, two) == []  # type: ignore[arg-type]


def test_buildah_reads_it(tmp_path: Path) -> None:
    image = opened(tmp_path / "l", *STACK)
    image.squash().with_config(cmd=["hello"]).save(f"oci:{tmp_path}/l:v2")
    storage = ["--root", str(tmp_path / "root"), "--runroot", str(tmp_path / "runroot"), "--storage-driver", "vfs"]
    buildah = program("buildah")
    try:
        name = call(buildah, *storage, "from", f"oci:{tmp_path}/l:v2").strip()
        told = json.loads(call(buildah, *storage, "inspect", name))
        assert told["OCIv1"]["config"]["Cmd"] == ["hello"]
        root = call(buildah, *storage, "mount", name).strip()
        theirs = tree(root)
        ours = with_knarr(f"oci:{tmp_path}/l:v2", tmp_path / "ours")
        # containers/storage makes its own top directory, and drops the times of links
        for path in (".",):
            del theirs[path], ours[path]
        assert differences(theirs, ours, ignore=["links"]) == []  # type: ignore[arg-type]
        call(buildah, *storage, "umount", name)
    finally:
        call(buildah, *storage, "rm", "--all")


def test_skopeo_copies_it_for_docker(tmp_path: Path) -> None:
    """Into the archive that docker load reads, and back: the same files."""
    image = opened(tmp_path / "l", *STACK).remove(["/opt"])
    image.save(f"oci:{tmp_path}/l:v2")
    call(program("skopeo"), "copy", f"oci:{tmp_path}/l:v2", f"docker-archive:{tmp_path}/d.tar:x:1")
    back = Image.open(f"docker-archive:{tmp_path}/d.tar")
    assert paths(back) == paths(image)
    assert {name: node.digest for name, node in flat(back).items()} == {
        name: node.digest for name, node in flat(image).items()
    }
    assert [str(finding) for finding in validate(f"docker-archive:{tmp_path}/d.tar")] == []


def test_an_index_for_skopeo(tmp_path: Path) -> None:
    amd = opened(tmp_path / "a", [f("amd")])
    arm = opened(tmp_path / "b", [f("arm")], platform="linux/arm64/v8")
    Index.of([amd, arm]).save(f"oci:{tmp_path}/l:v1")
    assert [str(finding) for finding in validate(f"oci:{tmp_path}/l")] == []
    raw = json.loads(call(program("skopeo"), "inspect", "--raw", f"oci:{tmp_path}/l:v1"))
    assert [entry["platform"]["architecture"] for entry in raw["manifests"]] == ["amd64", "arm64"]
    for architecture, name in (("amd64", "amd"), ("arm64", "arm")):
        call(
            program("skopeo"), "--override-arch", architecture, "copy",
            f"oci:{tmp_path}/l:v1", f"oci:{tmp_path}/{architecture}:v1",
        )  # fmt: skip
        assert paths(Image.open(f"oci:{tmp_path}/{architecture}:v1")) == [name]


@pytest.mark.parametrize("kind", ["gzip", "zstd", ""])
def test_what_others_wrote_is_sound(kind: str, tmp_path: Path) -> None:
    layout(tmp_path / "l", *STACK, kind="gzip")
    extra = {"gzip": [], "zstd": ["--dest-compress-format", "zstd", "--dest-compress"], "": ["--dest-decompress"]}[kind]
    call(program("skopeo"), "copy", *extra, f"oci:{tmp_path}/l:v1", f"oci:{tmp_path}/o:v1")
    assert [str(finding) for finding in validate(f"oci:{tmp_path}/o")] == []
    call(program("skopeo"), "copy", f"oci:{tmp_path}/l:v1", f"oci-archive:{tmp_path}/o.tar:v1")
    assert [str(finding) for finding in validate(f"oci-archive:{tmp_path}/o.tar")] == []


def test_saved_anywhere(tmp_path: Path) -> None:
    """Every place an image can be saved to gives it back."""
    image = opened(tmp_path / "l", *STACK).remove(["/opt"])
    index = Index.of([image, opened(tmp_path / "arm", [f("arm")], platform="linux/arm64")])
    for text in (
        "name:1",
        "store:name:2",
        f"oci:{tmp_path}/o",
        f"oci-archive:{tmp_path}/o.tar:v1",
        f"dir:{tmp_path}/dir",
    ):
        saved = image.save(text)
        again = Image.open(text)
        assert again.digest == saved.digest == image.digest, text
        assert paths(again) == paths(image)
        if not text.startswith("oci-archive"):
            assert index.save(text).digest == Index.open(text).digest == index.digest, text
            assert paths(Image.open(text, platform="linux/arm64")) == ["arm"]
    image.save(f"docker-archive:{tmp_path}/d.tar:x:1")
    assert paths(Image.open(f"docker-archive:{tmp_path}/d.tar")) == paths(image)
    assert "manifest.json" in call("tar", "-tf", str(tmp_path / "d.tar"))


def test_docker_loads_what_we_change(tmp_path: Path) -> None:
    """Into a dockerd of our own, from an archive we write, and back out of it."""
    short = Path(tempfile.mkdtemp(prefix="kd-", dir="/tmp"))  # containerd's socket has 107 characters at most
    try:
        docker = foreign.Docker(short)
    except foreign.Missing as error:
        if os.path.ismount(short / "docker"):  # which a dockerd that gave up leaves
            call("umount", str(short / "docker"))
        shutil.rmtree(short, ignore_errors=True)
        pytest.skip(str(error))
    try:
        image = opened(tmp_path / "l", *STACK).remove(["/opt"]).squash().with_config(env={"A": "1"}, cmd=["/bin/x"])
        image.save(f"docker-archive:{tmp_path}/ours.tar:example.com/made:1")
        docker("load", "-i", str(tmp_path / "ours.tar"))
        told = json.loads(docker("inspect", "example.com/made:1"))[0]
        assert told["Config"]["Cmd"] == ["/bin/x"]
        assert told["Config"]["Env"] == ["PATH=/bin", "A=1"]
        assert told["RootFS"]["Layers"] == [layer.diff_id for layer in image.layers]
        docker("save", "-o", str(tmp_path / "theirs.tar"), "example.com/made:1")
    finally:
        docker.close()
        shutil.rmtree(short, ignore_errors=True)
    back = Image.open(f"docker-archive:{tmp_path}/theirs.tar")
    # Docker writes its own media types; of files nothing may differ.
    assert {each.kind for each in diff(image, back)} <= {"manifest", "annotation", "config"}
    assert [str(finding) for finding in validate(f"docker-archive:{tmp_path}/theirs.tar")] == []
