"""Looking into images: what is listed is what is there, and no more is read than must be."""

from __future__ import annotations

import io
import json
import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from imagekit import layout, opened, sha256
from tarbuilder import c, d, f, h, header, s, tar, x

from knarr.base.errors import DigestMismatch, FileError, FormatError, NotFound
from knarr.engine.imaging.image import Image
from knarr.engine.imaging.layers import model_of
from knarr.engine.imaging.look import Finder, files, read_file, touches, usage
from knarr.layer.tarball import DIR

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Cli = Callable[..., tuple[int, str, str]]

STACK = [
    [
        d("etc"),
        f("etc/a", b"one"),
        f("etc/b", b"bb"),
        d("usr"),
        d("usr/bin"),
        s("bin", "usr/bin"),
        f("usr/bin/x", b"X"),
    ],
    [f("etc/.wh.b"), f("etc/a", b"two!"), h("etc/same", "etc/a"), s("etc/link", "../bin/x")],
    [d("opt"), f("opt/z", b"z" * 5000)],
]

# Names that no layer uses as a link to a directory: what is found from the top down is then what the model has.
NAMES = st.sampled_from(["a", "b", "c"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
ENTRIES = st.one_of(
    st.builds(lambda p, t: f(p, f"{p} {t}".encode(), mtime=t), PATHS, st.integers(1, 9)),
    st.builds(lambda p, t: d(p, mtime=t), PATHS, st.integers(1, 9)),
    st.builds(lambda p: s(f"{p}/link", "a"), PATHS),
    st.builds(h, PATHS, PATHS),
    st.builds(f, st.sampled_from([".wh.a", "a/.wh.b", "a/b/.wh.c", "a/.wh..wh..opq", ".wh..wh..opq", "b/.wh.a"])),
)
STACKS = st.lists(st.lists(ENTRIES, max_size=6), min_size=1, max_size=4)


@settings(max_examples=80, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(stack=STACKS)
def test_found_from_the_top_is_found_in_the_model(
    stack: list[list[bytes]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    image = opened(tmp_path_factory.mktemp("s"), *stack, kind="")
    try:
        model = model_of(image, hashed=True)
    except FormatError:
        assume(False)
    for path in ("a", "b", "a/b", "a/b/c", "b/a", "c/c", "a/link", "b/c/link"):
        node = model.get(path.encode())
        finder = Finder(image, content=1000)
        try:
            found = finder.find(path, follow=False)
        except NotFound:
            assert node is None, path
            continue
        if node is not None and found.entry.kind == DIR:
            assert node.children is not None
            continue  # of one that upper layers only imply the header is made up
        assert node is not None, path
        assert (found.entry.kind, found.entry.link) == (node.entry.kind, node.entry.link), path
        if found.content is not None:
            assert sha256(found.content) == node.digest, path


def test_cat(tmp_path: Path) -> None:
    image = opened(tmp_path / "l", *STACK)
    for path, content in (
        ("etc/a", b"two!"),
        ("/etc/same", b"two!"),
        ("/bin/x", b"X"),
        ("etc/link", b"X"),
        ("bin/../bin/x", b"X"),
    ):
        assert read_file(image, path) == content
        assert read_file(image, path, quick=True) == content
    for path in ("etc/b", "nope", "etc/a/x", "etc/b/c"):
        with pytest.raises(NotFound):
            read_file(image, path)
    with pytest.raises(FileError, match="directory"):
        read_file(image, "etc")
    with pytest.raises(FileError, match="at most 100"):
        read_file(image, "opt/z", limit=100)


def test_links_in_circles_end(tmp_path: Path) -> None:
    image = opened(tmp_path / "l", [s("a", "b"), s("b", "a")])
    with pytest.raises(FormatError, match="circles"):
        read_file(image, "a")


def test_no_more_layers_are_read_than_needed(tmp_path: Path) -> None:
    image = opened(tmp_path / "l", *STACK)
    finder = Finder(image)
    finder.find("opt/z")
    assert list(finder.read) == [2]
    finder.find("etc/a")
    assert list(finder.read) == [1, 2]
    before = image.fetched
    finder.find("etc/same")
    assert image.fetched == before, "a layer was read twice for a name"
    finder.find("usr/bin/x")
    assert list(finder.read) == [0, 1, 2]


def test_quick_reads_less_of_the_layer(tmp_path: Path) -> None:
    stack = [[f("first", b"1"), *(f(f"n{number}", os.urandom(50_000)) for number in range(100))]]
    sizes = []
    for quick in (False, True):
        image = opened(tmp_path / f"l{quick}", *stack, kind="")
        assert read_file(image, "first", quick=quick) == b"1"
        sizes.append(image.fetched)
    assert sizes[0] > 5_000_000
    assert sizes[1] < 2_200_000  # a chunk or two


def test_a_damaged_layer_is_not_shown(tmp_path: Path) -> None:
    ref = layout(tmp_path / "l", [f("a", b"good"), f("z", b"z" * 3_000_000)], kind="")
    digest = Image.open(ref).layers[0].digest.partition(":")[2]
    blob = tmp_path / "l" / "blobs" / "sha256" / digest
    blob.write_bytes(blob.read_bytes().replace(b"good", b"evil"))
    with pytest.raises(DigestMismatch):
        read_file(Image.open(ref), "a")
    assert read_file(Image.open(ref), "a", quick=True) == b"evil", "quick says that it does not verify"


def test_touches(tmp_path: Path) -> None:
    image = opened(tmp_path / "l", *STACK)
    path, found, read = touches(image, "/etc/b", everything=True)
    assert path == b"etc/b"
    assert [(touch.layer, touch.what) for touch in found] == [(1, "hidden"), (0, "set")]
    assert read == (0, 1, 2)
    assert [(touch.layer, touch.what) for touch in touches(image, "/bin/x")[1]] == [(0, "set")]
    assert touches(image, "/opt/z")[2] == (2,)
    above = opened(tmp_path / "m", [d("a"), f("a/b")], [f(".wh.a")], [d("a"), f("a/.wh..wh..opq")])
    assert [(t.layer, t.what, t.path) for t in touches(above, "a/b", everything=True)[1]] == [
        (2, "opaque", b"a"), (1, "hidden", b"a"), (0, "set", b"a/b"),
    ]  # fmt: skip


def test_list(tmp_path: Path) -> None:
    image = opened(tmp_path / "l", *STACK)
    assert [path for path, _ in files(image, "etc")] == [b"etc", b"etc/a", b"etc/link", b"etc/same"]
    assert [path for path, _ in files(image, "/bin", recursive=False)] == [b"usr/bin/x"]
    assert [path for path, _ in files(image, "etc/a")] == [b"etc/a"]
    with pytest.raises(NotFound):
        files(image, "nope")


def test_usage(tmp_path: Path) -> None:
    told = usage(opened(tmp_path / "l", *STACK))
    assert [(row["size"], row["wasted"], row["whiteouts"]) for row in told["layers"]] == [
        (6, 5, 0),
        (4, 0, 1),
        (5000, 0, 0),
    ]
    assert (told["size"], told["wasted"]) == (5010, 5)


# -- as commands -------------------------------------------------------------------------------------------

ODD = [
    f(b"bad\xff"), f("esc\x1b[31m"), s("to", "esc\x1b"), c("null", 1, 3), header(b"p", b"6"),
    x(("SCHILY.xattr.user.k", "v")) + f("attr", b"1", mode=0o4755, uid=5, gid=6, mtime=1_500_000_000),
]  # fmt: skip


def test_ls_command(tmp_path: Path, cli: Cli) -> None:
    ref = layout(tmp_path / "l", ODD)
    code, out, _err = cli("image", "ls", "-l", ref)
    assert code == 0
    assert "\x1b" not in out
    assert "/bad\\udcff" in out
    assert "-rwsr-xr-x     5     6            1 2017-07-14 02:40:00 /attr" in out
    assert "1, 3" in out
    rows = json.loads(cli("image", "ls", "-R", "--json", ref)[1])
    by_path = {row["path"]: row for row in rows}
    assert by_path["/attr"] == {
        "path": "/attr", "type": "file", "mode": "4755", "uid": 5, "gid": 6, "size": 1,
        "mtime": 1_500_000_000 * 10**9, "xattrs": {"user.k": b"v".hex()}, "layer": 0,
    }  # fmt: skip
    assert by_path["/null"]["device"] == "1:3"
    assert by_path["/bad\\xff"]["type"] == "file"
    assert cli("image", "ls", ref, "/nope")[0] == 125


def test_cat_command(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    from knarr.cli.command import run_command

    ref = layout(tmp_path / "l", [f("a", bytes(range(256)))])
    assert run_command(["image", "cat", ref, "/a"]) == 0
    assert capfdbinary.readouterr().out == bytes(range(256))


def test_tree_command(tmp_path: Path, cli: Cli) -> None:
    out = cli("image", "tree", layout(tmp_path / "l", *STACK))[1]
    assert out == (
        "/  5 kB\n├── bin -> usr/bin\n├── etc  4 B\n│   ├── a  4 B\n│   ├── link -> ../bin/x\n│   └── same  4 B\n"
        "├── opt  5 kB\n│   └── z  5 kB\n└── usr  1 B\n    └── bin  1 B\n        └── x  1 B\n"
    )
    assert "└── x" not in cli("image", "tree", "--depth", "1", f"oci:{tmp_path}/l:v1", "/usr")[1]


def test_tree_as_json(tmp_path: Path, cli: Cli) -> None:
    ref = layout(tmp_path / "l", *STACK)
    found = {one["path"]: one["total"] for one in json.loads(cli("image", "tree", "--json", "--depth", "0", ref)[1])}
    assert list(found)[:3] == ["/", "/bin", "/etc"]
    listed = json.loads(cli("image", "ls", "-R", "--json", ref)[1])
    assert set(found) == {one["path"] for one in listed}
    assert found["/etc"] == 4
    assert found["/"] == found["/etc"] + found["/opt"] + found["/usr"]
    some = json.loads(cli("image", "tree", "--json", "--depth", "1", ref, "/usr")[1])
    assert [one["path"] for one in some] == ["/usr", "/usr/bin"]


def test_history_command(tmp_path: Path, cli: Cli) -> None:
    ref = layout(tmp_path / "l", *STACK, config={"history": [
        {"created_by": "one"}, {"created_by": "env", "empty_layer": True}, {"created_by": "two"}, {"created_by": "x" * 90}]})  # fmt: skip
    rows = json.loads(cli("image", "history", "--json", ref)[1])
    assert [(row["Layer"], row["CreatedBy"], row["EmptyLayer"]) for row in rows] == [
        (2, "x" * 90, False), (1, "two", False), ("", "env", True), (0, "one", False),
    ]  # fmt: skip
    assert "x" * 90 not in cli("image", "history", ref)[1]
    assert "x" * 90 in cli("image", "history", "--no-trunc", ref)[1]
    assert cli("image", "history", "--format", "{{.CreatedBy}}", ref)[1].splitlines()[1] == "two"


def test_which_layer_command(tmp_path: Path, cli: Cli) -> None:
    ref = layout(tmp_path / "l", *STACK)
    code, out, err = cli("image", "which-layer", ref, "/etc/b")
    assert (code, err) == (0, "")
    assert out.startswith("layer 1 sha256:")
    assert " hidden /etc/b  layer 1" in out
    told = json.loads(cli("image", "which-layer", "--json", ref, "/opt/z")[1])
    assert [touch["layer"] for touch in told["touched"]] == [2]
    assert told["read"] == [2]
    assert 0 < told["fetched"] < told["size"]
    code, out, err = cli("image", "which-layer", ref, "/nope")
    assert (code, out) == (125, "")
    assert "/nope" in err


def test_du_command(tmp_path: Path, cli: Cli) -> None:
    ref = layout(tmp_path / "l", *STACK)
    assert json.loads(cli("image", "du", "--json", ref)[1])["wasted"] == 5
    assert cli("image", "du", ref)[1].splitlines()[-1].endswith("5.01 kB of files, 5 B wasted (0.1 %)")


def test_a_name_without_transport_asks_nobody(cli: Cli) -> None:
    code, _out, err = cli("image", "ls", "busybox")
    assert code == 125
    assert "does not exist" in err


def test_entries_of_a_layer(tmp_path: Path) -> None:
    layer = opened(tmp_path / "l", *STACK).layers[2]
    assert [entry.name for entry in layer.entries()] == [b"opt", b"opt/z"]
    stream = layer.stream()
    assert io.BytesIO(stream.read(1 << 20)).getvalue() == tar(*STACK[2])
    stream.close()


def test_inspect_command(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    from knarr.cli.command import run_command
    from knarr.engine.imaging.image import Index

    ref = layout(tmp_path / "l", *STACK)
    image = Image.open(ref)
    arm = opened(tmp_path / "arm", [f("arm")], platform="linux/arm64")
    run_command(["image", "inspect", ref])
    told = json.loads(capfdbinary.readouterr().out)
    assert (told["Digest"], told["Platform"], told["Created"]) == (image.digest, "linux/amd64", "2026-01-02T03:04:05Z")
    assert [layer["CreatedBy"] for layer in told["Layers"]] == ["layer 0", "layer 1", "layer 2"]
    assert told["Config"]["Cmd"] == ["/bin/sh"]
    index = Index.of([image, arm]).save("app:1")
    run_command(["image", "inspect", "app:1"])
    told = json.loads(capfdbinary.readouterr().out)
    assert told["Index"]["Digest"] == index.digest
    assert [entry["Platform"] for entry in told["Index"]["Manifests"]] == ["linux/amd64", "linux/arm64"]
    run_command(["image", "inspect", "--platform", "linux/arm64", "--format", "{{.Digest}}", "app:1"])
    assert capfdbinary.readouterr().out.decode().strip() == arm.digest
    run_command(["image", "inspect", "--raw", "app:1"])
    assert sha256(capfdbinary.readouterr().out) == index.digest.partition(":")[2]
    run_command(["image", "inspect", "--config", ref])
    assert sha256(capfdbinary.readouterr().out) == image.id.partition(":")[2]
    assert run_command(["image", "inspect", "--config", "--raw", ref]) == 125


def test_a_layer_of_another_diff_id_is_not_shown(tmp_path: Path) -> None:
    # The blob is what its digest says, but not what the config promises: that shows at the layer's end only.
    config = {"rootfs": {"type": "layers", "diff_ids": ["sha256:" + "a" * 64]}}
    ref = layout(tmp_path / "l", [f("a", b"x")], config=config)
    for ask in (lambda image: read_file(image, "a"), lambda image: touches(image, "a"), files):
        with pytest.raises(DigestMismatch):
            ask(Image.open(ref))
