"""Every difference between two images is named, and of two builds the first entry that differs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from imagekit import layout, opened, sha256
from tarbuilder import c, d, f, h, s, x

from knarr.engine.imaging.compare import diff, first_difference

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Cli = Callable[..., tuple[int, str, str]]

BASE = [d("d"), f("d/a", b"aaa"), s("l", "d/a"), c("n", 1, 3), f("h1", b"h"), h("h2", "h1")]

# the second image's layer -> what differs
CASES: dict[str, tuple[list[bytes], list[tuple[str, str, list[str]]]]] = {
    "nothing": (BASE, []),
    "content of the same size": ([d("d"), f("d/a", b"aab"), *BASE[2:]], [("changed", "/d/a", ["content"])]),
    "content": ([d("d"), f("d/a", b"aaaa"), *BASE[2:]], [("changed", "/d/a", ["size", "content"])]),
    "mode": ([d("d"), f("d/a", b"aaa", mode=0o4755), *BASE[2:]], [("changed", "/d/a", ["mode"])]),
    "owner": ([d("d"), f("d/a", b"aaa", uid=1, gid=2), *BASE[2:]], [("changed", "/d/a", ["uid", "gid"])]),
    "time": ([d("d"), f("d/a", b"aaa", mtime=5), *BASE[2:]], [("changed", "/d/a", ["mtime"])]),
    "attribute": (
        [d("d"), x(("SCHILY.xattr.user.k", "v")) + f("d/a", b"aaa"), *BASE[2:]],
        [("changed", "/d/a", ["xattrs"])],
    ),
    "target": ([*BASE[:2], s("l", "x"), *BASE[3:]], [("changed", "/l", ["target"])]),
    "device": ([*BASE[:3], c("n", 1, 5), *BASE[4:]], [("changed", "/n", ["device"])]),
    "type": ([*BASE[:3], f("n"), *BASE[4:]], [("changed", "/n", ["type", "device"])]),
    "links": (
        [*BASE[:5], f("h2", b"h")],
        [("changed", "/h1", ["links"]), ("changed", "/h2", ["links"])],
    ),
    "added": ([*BASE, f("new")], [("added", "/new", [])]),
    "removed": (BASE[:4], [("removed", "/h1", []), ("removed", "/h2", [])]),
    "a directory's mode": ([d("d", 0o700), *BASE[1:]], [("changed", "/d", ["mode"])]),
}


@pytest.mark.parametrize("case", CASES)
def test_files(case: str, tmp_path: Path) -> None:
    layer, expected = CASES[case]
    one, two = opened(tmp_path / "one", BASE), opened(tmp_path / "two", layer)
    found = diff(one, two)
    assert [(each.what, each.name, list(each.fields)) for each in found] == expected
    opposite = {"added": "removed", "removed": "added", "changed": "changed"}
    back = diff(two, one)
    assert [(opposite[each.what], each.name) for each in back] == [(what, name) for what, name, _ in expected]
    first = first_difference(one, two)
    assert (first is None) == (not expected)
    if first is not None:
        assert first.layer == 0


def test_how_layers_are_cut_makes_no_difference(tmp_path: Path) -> None:
    one = opened(tmp_path / "one", [f("a", b"1")], [f("b", b"2"), f("x")], [f(".wh.x")], config={"history": []})
    two = opened(tmp_path / "two", [f("b", b"2"), f("a", b"1")], kind="zstd", config={"history": []})
    assert diff(one, two) == []


def test_times_can_be_left_out(tmp_path: Path) -> None:
    one, two = opened(tmp_path / "one", [f("a", mtime=1)]), opened(tmp_path / "two", [f("a", mtime=2)])
    assert len(diff(one, two)) == 1
    assert diff(one, two, mtime=False) == []


def test_documents(tmp_path: Path) -> None:
    one = opened(tmp_path / "one", [f("a")])
    two = one.with_config(env={"PATH": "/x", "N": "1"}, user="5", labels={"l": "1"}, author="me", cmd=None)
    two = two.with_annotations({"k": "v"}).with_history({0: {"comment": "c"}})
    found = {(each.kind, each.what, each.name) for each in diff(one, two)}
    assert found == {
        ("annotation", "added", "k"),
        ("config", "added", "author"),
        ("config", "added", "Labels.l"),
        ("config", "added", "User"),
        ("config", "changed", "Env.PATH"),
        ("config", "added", "Env.N"),
        ("config", "removed", "Cmd"),
        ("history", "changed", "0"),
    }


FIRST: dict[str, tuple[list[list[bytes]], list[list[bytes]], dict[str, Any]]] = {
    "an entry more": ([[f("a")]], [[f("a"), f("b")]], {"layer": 0, "entry": 1, "path": "b"}),
    "an entry less": ([[f("a"), f("b")]], [[f("a")]], {"layer": 0, "entry": 1, "path": "b"}),
    "order": ([[f("a"), f("b")]], [[f("b"), f("a")]], {"entry": 0, "path": "a", "fields": {"name": ("a", "b")}}),
    "a later layer": ([[f("a")], [f("b", mtime=1)]], [[f("a")], [f("b", mtime=2)]], {"layer": 1, "path": "b"}),
    "a link": ([[f("a"), h("b", "a")]], [[f("a"), h("b", "./a")]], {"fields": {"target": ("a", "./a")}}),
    "a layer more": ([[f("a")]], [[f("a")], [f("b")]], {"layer": 1, "entry": -1}),
}


@pytest.mark.parametrize("case", FIRST)
def test_the_first_entry_that_differs(case: str, tmp_path: Path) -> None:
    left, right, expected = FIRST[case]
    first = first_difference(opened(tmp_path / "one", *left), opened(tmp_path / "two", *right))
    assert first is not None
    for name, value in expected.items():
        assert getattr(first, name) == value, name


def test_the_first_difference_is_not_always_an_entry(tmp_path: Path) -> None:
    one = opened(tmp_path / "one", [f("a", b"1")])
    config = first_difference(one, one.with_config(user="1"))
    assert config is not None
    assert config.why.startswith("config User is added")
    packed = first_difference(one, opened(tmp_path / "two", [f("a", b"1")], kind="zstd"))
    assert packed is not None
    assert packed.why.startswith("the layer is the same, but compressed")
    names = first_difference(one, opened(tmp_path / "three", [f("a", b"1", magic=b"ustar  \0")]))
    assert names is not None
    assert "no file has" in names.why
    assert first_difference(one, one) is None


def test_diff_command(tmp_path: Path, cli: Cli) -> None:
    one = layout(tmp_path / "one", [f("a", b"1"), f("e\x1b")])
    two = layout(tmp_path / "two", [f("a", b"2")])
    code, out, _err = cli("image", "diff", one, two)
    assert code == 1
    assert out == f"~ file /a\n    content: sha256:{sha256(b'1')} -> sha256:{sha256(b'2')}\n- file /e\\x1b\n"
    told = json.loads(cli("image", "diff", "--json", one, two)[1])
    assert told[1] == {"kind": "file", "what": "removed", "name": "/e\x1b", "fields": {}}
    assert cli("image", "diff", one, one) == (0, "", "")
    code, out, _err = cli("image", "diff", "--first", one, two)
    assert code == 1
    assert out.startswith("layer 0, entry 0 a: content differ")
    assert json.loads(cli("image", "diff", "--first", "--json", one, two)[1])["path"] == "a"
