"""Any stack of layers, merged into one tree and kept as one directory a layer under overlayfs: the same tree."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tarbuilder import c, d, f, h, header, s, tar, x
from trees import differences, directory, needs_root, overlay, scratch, tree

from knarr.base.errors import FormatError
from knarr.layer.apply import apply_layer
from knarr.layer.view import MergedView

if TYPE_CHECKING:
    from collections.abc import Sequence

pytestmark = needs_root

NAMES = st.sampled_from(["a", "b", "c"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
TARGETS = st.sampled_from(["a", "b/c", "/a", "../b", "/b/../a", "..", "nowhere", "c"])
TIMES = st.integers(1, 9).map(lambda number: number * 100_000_000)
WHITEOUTS = st.tuples(
    st.sampled_from(["", "a/", "b/", "a/b/", "a/c/", "c/"]), st.sampled_from([".wh.a", ".wh.b", ".wh..wh..opq"])
)
ENTRIES = st.one_of(
    st.builds(lambda p, t: f(p, f"{p} {t}".encode(), mtime=t, mode=0o600 + t % 7, uid=t % 5), PATHS, TIMES),
    st.builds(lambda p, t: d(p, 0o700 + t // 100_000_000, mtime=t, gid=t // 100_000_000), PATHS, TIMES),
    st.builds(lambda p, t: x(("SCHILY.xattr.user.k", str(t))) + d(p, mtime=t), PATHS, TIMES),
    st.builds(lambda p, target, t: s(p, target, mtime=t), PATHS, TARGETS, TIMES),
    st.builds(h, PATHS, PATHS),
    st.builds(lambda p, t: header(p.encode(), b"6", mtime=t), PATHS, TIMES),
    st.builds(lambda p, t: c(p, 1, 3, mtime=t), PATHS, TIMES),
    st.builds(lambda pair: f("".join(pair)), WHITEOUTS),
    st.builds(lambda t: d("./", 0o755, mtime=t, uid=t // 100_000_000), TIMES),
)
LAYERS = st.lists(ENTRIES, min_size=0, max_size=7)
STACKS = st.lists(LAYERS, min_size=1, max_size=4)


def merge(stack: Sequence[list[bytes]], root: str) -> str:
    """Apply all to one directory; the reason when a layer is refused."""
    for index, layer in enumerate(stack):
        with directory(root) as fd:
            try:
                apply_layer(io.BytesIO(tar(*layer)), fd, fresh=index == 0)
            except FormatError as error:
                return f"layer {index}: {error.where}"
    return ""


def stacked(stack: Sequence[list[bytes]], top: str) -> tuple[list[str], str]:
    """Apply each to a directory of its own; those shown, top first, and the reason when a layer is refused."""
    lowers: list[str] = []
    for index, layer in enumerate(stack):
        root = f"{top}/{index}"
        os.mkdir(root)
        with directory(root) as fd, MergedView.of_paths(lowers) as view:
            try:
                done = apply_layer(
                    io.BytesIO(tar(*layer)), fd, mode="overlay", below=(lambda: view) if lowers else None, fresh=True
                )
            except FormatError as error:
                return [], f"layer {index}: {error.where}"
        lowers = [root] if done.opaque else [root, *lowers]
    return lowers, ""


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(STACKS)
@example([[d("a"), f("a/b", b"1")], [f(".wh.a"), f("a/c", b"2")]])
@example([[d("a"), f("a/b", b"1")], [f("a/c", b"2"), f(".wh.a")]])
@example([[d("a"), f("a/b", b"1")], [f("a", b"2")], [d("a"), f("a/c", b"3")]])
@example([[f("a", b"1")], [h("b", "a"), f(".wh.a")]])
@example([[f("a/b", b"1")], [h("b", "a/b"), f("a/.wh..wh..opq"), f(".wh.a")]])
@example([[f("a/b/c", b"1")], [f("a/b/.wh.c"), f("a/.wh..wh..opq")]])
@example([[f("a/b/c", b"1")], [f("a/b/.wh.c"), f(".wh.a")], [f("a/x")]])
@example([[f("a/b", b"1"), s("c", "a")], [f("c/d", b"2")], [f("c/.wh.b")]])
@example([[f("a/b", b"1")], [s("a", "c"), f("a/b", b"2"), d("a"), f("a/c", b"3")]])
@example([[f("a/b", b"1")], [f(".wh..wh..opq"), f("b")], [f("a/b", b"2")]])
@example([[f("a/a/a"), s("b", "a"), f("b/b"), d("b/a/a", 0o701, mtime=100_000_000, gid=1)]])
def test_merged_is_mounted(stack: list[list[bytes]]) -> None:
    with scratch() as top:
        root = f"{top}/merged"
        os.mkdir(root)
        refused = merge(stack, root)
        lowers, also = stacked(stack, top)
        assert also == refused
        if refused:
            return
        with overlay(lowers, top) as mounted:
            assert differences(tree(mounted), tree(root), ignore=["links"]) == []
        with MergedView.of_paths(lowers) as view:
            for path, item in tree(root).items():
                found = view.lookup(b"" if path == "." else path.encode())
                assert found is not None, path
                assert found.facts.st_mtime_ns == item.mtime
                if item.kind == "file":
                    with open(f"{root}/{path}", "rb") as stream:
                        assert view.read_file(path, 100) == stream.read()
