"""The model of an image is the tree that applying its layers gives, for any stack of layers."""

from __future__ import annotations

import hashlib
import io
import os

import pytest
from hypothesis import HealthCheck, example, given, settings
from tarbuilder import d, f, h, header, padded, s, tar
from test_modes_agree import STACKS, merge
from trees import KINDS as NAMES
from trees import Item, differences, needs_root, scratch, tree

from knarr.base.errors import FormatError, Unsupported
from knarr.layer.model import Change, Model, Node
from knarr.layer.tarball import BLOCK, CHAR, DIR, FIFO, FILE, SYMLINK
from knarr.layer.whiteout import BadName

KINDS = {FILE: "file", DIR: "directory", SYMLINK: "link", CHAR: "char", BLOCK: "block", FIFO: "fifo"}


def items(model: Model) -> dict[str, Item]:
    """The model in the words of trees.py."""
    flat = model.flat()
    names: dict[int, int] = {}
    for node in flat.values():
        names[id(node)] = names.get(id(node), 0) + 1
    return {os.fsdecode(path) or ".": described(node, names[id(node)]) for path, node in flat.items()}


def described(node: Node, names: int) -> Item:
    entry, kind = node.entry, KINDS[node.entry.kind]
    return Item(
        kind,
        0o777 if kind == "link" else entry.mode,
        (entry.uid, entry.gid),
        len(entry.link) if kind == "link" else entry.size,
        entry.mtime,
        os.fsdecode(entry.link) if kind == "link" else "",
        0 if kind == "directory" else names,
        os.makedev(*entry.device) if kind in {"char", "block"} else 0,
        tuple(sorted((os.fsdecode(name), value) for name, value in (entry.xattrs or {}).items())),
        node.digest,
    )


def model_of(*layers: list[bytes], hashed: bool = True) -> Model:
    model = Model()
    for layer in layers:
        model.apply(io.BytesIO(tar(*layer)), hashed=hashed)
    return model


@needs_root
@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(STACKS)
@example([[f("a/a/a"), s("b", "a"), f("b/b"), d("b/a/a", 0o701, mtime=100_000_000, gid=1)]])
def test_the_model_is_the_tree(stack: list[list[bytes]]) -> None:
    assert set(NAMES.values()) >= set(KINDS.values())
    with scratch() as top:
        root = f"{top}/merged"
        os.mkdir(root)
        refused = merge(stack, root)
        if refused:
            with pytest.raises(FormatError) as caught:
                model_of(*stack)
            assert refused.partition(": ")[2] == caught.value.where
            return
        model = model_of(*stack)
        assert differences(items(model), tree(root)) == []


def test_find_follows_links_inside_the_root() -> None:
    model = model_of([d("usr"), d("usr/bin"), f("usr/bin/sh", b"x"), s("bin", "usr/bin"), s("up", "../../../usr")])
    found = model.find(b"/bin/sh")
    assert found is not None
    assert found[0] == b"usr/bin/sh"
    assert model.find(b"bin", follow=False) == (b"bin", model.get(b"bin"))
    assert model.find(b"up/bin/../bin/sh") == found
    assert model.find(b"bin/nothing") is None
    assert model.find(b"bin/sh/x") is None


def test_find_ends_in_a_circle() -> None:
    model = model_of([s("a", "b"), s("b", "a")])
    with pytest.raises(BadName, match="circles"):
        model.find(b"a/x")


def test_changes_are_told_by_layer() -> None:
    told: list[tuple[str, str, int]] = []

    def seen(change: Change) -> None:
        told.append((change.path.decode(), change.what, change.layer))

    model = Model()
    for layer in ([d("a"), f("a/x")], [f("a/.wh.x"), f("a/.wh..wh..opq"), f("b")]):
        model.apply(io.BytesIO(tar(*layer)), seen=seen)
    expected = [("a", "set", 0), ("a/x", "set", 0), ("a/x", "hidden", 1), ("a", "opaque", 1), ("b", "set", 1)]
    assert told == expected


def test_a_hidden_directory_goes_even_after_it_was_emptied() -> None:
    model = model_of([f("a/b", b"1")], [f("a/.wh..wh..opq"), f(".wh.a")])
    assert list(model.flat()) == [b""]


def test_entries_are_bounded() -> None:
    model = Model(limit=3)
    with pytest.raises(Unsupported, match="more than 3 entries"):
        model.apply(io.BytesIO(tar(f("a"), f("b"), f("c"), f("d"))))


def test_a_storm_of_whiteouts_takes_linear_time() -> None:
    many = [f(f"d/.wh.{number}") for number in range(20_000)]
    model = model_of([f(f"d/{number}") for number in range(20_000)], [f("d/kept"), *many, f("d/.wh..wh..opq")])
    assert list(model.flat()) == [b"", b"d", b"d/kept"]


def test_a_sparse_file_is_hashed_with_its_holes() -> None:
    pairs = b"".join(b"%011o\0" % number for number in (512, 512, 2048, 0))
    tail = bytes(41) + pairs.ljust(96, b"\0") + b"\0" + b"%011o\0" % 2048
    sparse = header(b"s", b"S", size=512, magic=b"ustar  \0", tail=tail) + padded(b"x" * 512)
    node = model_of([sparse]).get(b"s")
    assert node is not None
    plain = bytes(512) + b"x" * 512 + bytes(1024)
    assert node.digest == hashlib.sha256(plain).hexdigest()


def test_hard_links_share_a_node() -> None:
    model = model_of([f("a", b"1"), h("b", "a")], [f("a", b"2")])
    one, two = model.get(b"a"), model.get(b"b")
    assert one is not None
    assert two is not None
    assert (one.layer, two.layer) == (1, 0)
