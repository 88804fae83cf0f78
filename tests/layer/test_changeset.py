"""What lies between two trees, as a layer: applied to the first it gives the second, hard links and all."""

from __future__ import annotations

import io
import os
import tarfile
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tarbuilder import d, f, h, header, padded, s, tar
from test_model import items, model_of
from test_modes_agree import LAYERS, STACKS, merge
from trees import differences, needs_root, scratch, tree

from knarr.base.errors import FormatError, Unsupported
from knarr.layer.changeset import changes, from_layers, is_equal, is_node
from knarr.layer.model import Model, Node

if TYPE_CHECKING:
    from collections.abc import Callable


def written(stack: list[list[bytes]], start: int) -> bytes:
    """Layers ``start`` and up, as one."""
    model = Model()
    base: dict[bytes, Node] | None = {} if not start else None
    for number, layer in enumerate(stack):
        if number == start and start:
            base = model.flat()
        model.apply(io.BytesIO(tar(*layer)))
    if base is None:
        base = model.flat()
    new = model.flat()
    out = io.BytesIO()
    from_layers(changes(base, new, is_node), new, out, lambda number: io.BytesIO(tar(*stack[number])))
    return out.getvalue()


def applied(*layers: bytes) -> Model:
    model = Model()
    for layer in layers:
        model.apply(io.BytesIO(layer), hashed=True)
    return model


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(STACKS, st.integers(0, 4))
def test_squashed_layers_give_the_same_tree(stack: list[list[bytes]], start: int) -> None:
    start = min(start, len(stack))
    try:
        whole = model_of(*stack)
    except FormatError:
        assume(False)
    squashed = applied(*(tar(*layer) for layer in stack[:start]), written(stack, start))
    assert differences(items(squashed), items(whole)) == []


@needs_root
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(STACKS)
def test_squashed_layers_on_disk(stack: list[list[bytes]]) -> None:
    with scratch() as top:
        for name in ("one", "two"):
            os.mkdir(f"{top}/{name}")
        if merge(stack, f"{top}/one"):
            return
        data = written(stack, 0)
        assert merge([[data[:-1024]]], f"{top}/two") == ""
        assert differences(tree(f"{top}/two"), tree(f"{top}/one")) == []


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(LAYERS, LAYERS)
def test_between_any_two_trees(one: list[bytes], two: list[bytes]) -> None:
    try:
        first, second = model_of(one), model_of(two)
    except FormatError:
        assume(False)
    new = second.flat()
    found = changes(first.flat(), new, is_equal)
    out = io.BytesIO()
    from_layers(found, new, out, lambda _number: io.BytesIO(tar(*two)))
    model = applied(tar(*one), out.getvalue())
    assert differences(items(model), items(second)) == []
    assert bool(changes(model.flat(), new, is_equal)) is False
    if not found:
        assert differences(items(first), items(second)) == []


def test_the_order_is_its_own() -> None:
    stack = [[f("z", b"1"), h("link", "z"), s("s", "z"), d("b"), f("b/x", b"2"), f("gone")], [f(".wh.gone"), f("a")]]
    with tarfile.open(fileobj=io.BytesIO(written(stack, 0))) as archive:
        assert archive.getnames() == ["b", "s", "link", "b/x", "a", "z"]
    with tarfile.open(fileobj=io.BytesIO(written(stack, 1))) as archive:
        assert archive.getnames() == [".wh.gone", "a"]


def test_only_needed_layers_are_opened() -> None:
    stack = [tar(f("a", b"1")), tar(f("b", b"2"))]
    model = applied(stack[0])
    base = model.flat()
    model.apply(io.BytesIO(stack[1]))
    opened: list[int] = []

    def layer(number: int) -> io.BytesIO:
        opened.append(number)
        return io.BytesIO(stack[number])

    from_layers(changes(base, model.flat(), is_node), model.flat(), io.BytesIO(), layer)
    assert opened == [1]


def sparse(size: int) -> bytes:
    pairs = b"".join(b"%011o\0" % number for number in (512, 512, size, 0))
    tail = bytes(41) + pairs.ljust(96, b"\0") + b"\0" + b"%011o\0" % size
    return header(b"s", b"S", size=512, magic=b"ustar  \0", tail=tail) + padded(b"x" * 512)


def test_a_sparse_file_is_written_out() -> None:
    model = applied(written([[sparse(2048)]], 0))
    node = model.get(b"s")
    assert node is not None
    assert node.entry.size == 2048
    assert node.digest == model_of([sparse(2048)]).flat()[b"s"].digest


def test_a_huge_sparse_file_is_refused() -> None:
    with pytest.raises(Unsupported, match="sparse"):
        written([[sparse(2 << 30)]], 0)


def opener(data: bytes) -> Callable[[int], io.BytesIO]:
    return lambda _number: io.BytesIO(data)


def test_names_of_one_file_become_two_files_and_back() -> None:
    linked, apart = [f("a", b"1"), h("b", "a")], [f("a", b"1"), f("b", b"1")]
    for one, two in ((linked, apart), (apart, linked)):
        first, second = model_of(one), model_of(two)
        new = second.flat()
        out = io.BytesIO()
        data = tar(*two)
        from_layers(changes(first.flat(), new, is_equal), new, out, opener(data))
        assert differences(items(applied(tar(*one), out.getvalue())), items(second)) == []
