"""``knarr image tree``: the files of an image, drawn."""

from __future__ import annotations

import os

from knarr.base.errors import UsageError
from knarr.cli.command import Parser
from knarr.cli.image.common import SOURCES, add_json, add_platform, add_whole, fetched, opened, shown, wants_json
from knarr.cli.output import put, put_json, size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from knarr.layer.model import Node


def parse_tree() -> Parser:
    """The parser of ``knarr image tree``."""
    parser = Parser(
        "image tree",
        "Draw the files of an image as a tree, with the bytes below each directory.",
        "[--depth N] [--whole] [--json] IMAGE [PATH]",
        "  knarr image tree --depth 2 alpine\n  knarr image tree oci:./layout:v1 /usr/lib",
    )
    parser.add_argument("-d", "--depth", type=int, default=3, metavar="N", help="levels to draw (3); 0 for all")
    add_whole(parser)
    add_json(parser)
    add_platform(parser)
    parser.add_argument("image", metavar="IMAGE", help=SOURCES)
    parser.add_argument("path", metavar="PATH", nargs="?", default="/", help="where to begin; / if not given")
    return parser


def do_tree(arguments: list[str]) -> int:
    """Draw."""
    given = parse_tree().parse_args(arguments)
    if given.depth < 0:
        raise UsageError(f"--depth {given.depth} is below 0")
    as_json = wants_json(given)
    from knarr.engine.imaging.layers import model_of
    from knarr.engine.imaging.look import described, located

    with opened(given.image, given.platform) as image:
        model = model_of(image, index=not given.whole)
        start, node = located(model, image, given.path)
        sizes = _sizes(node)
        if as_json:
            below = _below(start, node, given.depth or 10_000)
            put_json([{**described(path, one.entry), "total": sizes[id(one)]} for path, one in below])
        else:
            put(f"{shown(start)}  {size(sizes[id(node)])}")
            _draw(node, "", given.depth or 10_000, sizes)
        fetched(image, given.image)
    return 0


def _sizes(top: Node) -> dict[int, int]:
    """Bytes of files at and below each node; a file of several names counts where it is met first."""
    order, todo, met = [], [top], set()
    while todo:
        node = todo.pop()
        if id(node) in met:
            continue
        met.add(id(node))
        order.append(node)
        todo.extend((node.children or {}).values())
    sizes: dict[int, int] = {}
    counted: set[int] = set()
    for node in reversed(order):
        total = node.entry.size
        for child in (node.children or {}).values():
            if child.children is not None or id(child) not in counted:
                counted.add(id(child))
                total += sizes[id(child)]
        sizes[id(node)] = total
    return sizes


def _below(start: bytes, top: Node, depth: int) -> Iterator[tuple[bytes, Node]]:
    """``top`` and what is below it, as it is drawn, each with its path."""
    todo = [(start, top, depth)]
    while todo:
        path, node, left = todo.pop()
        yield path, node
        if left:
            children = sorted((node.children or {}).items(), reverse=True)
            todo += [(path + b"/" + name if path else name, child, left - 1) for name, child in children]


def _draw(top: Node, margin: str, depth: int, sizes: dict[int, int]) -> None:
    from knarr.kernel.path import printable
    from knarr.layer.tarball import FILE, SYMLINK

    todo = [(top, margin, depth, iter(sorted((top.children or {}).items())))]
    while todo:
        node, margin, depth, names = todo[-1]
        item = next(names, None)
        if item is None:
            todo.pop()
            continue
        name, child = item
        last = name == max(node.children or {})
        line = f"{margin}{'└── ' if last else '├── '}{printable(os.fsdecode(name))}"
        if child.entry.kind == SYMLINK:
            line += f" -> {printable(os.fsdecode(child.entry.link))}"
        elif child.children is not None or child.entry.kind == FILE:
            line += f"  {size(sizes[id(child)])}"
        put(line)
        if child.children and depth > 1:
            inner = margin + ("    " if last else "│   ")
            todo.append((child, inner, depth - 1, iter(sorted(child.children.items()))))
