"""Unpacking an image to a directory that can be packed again: the files, and a record of what they were like.

The record lies beside the files: ``BUNDLE/knarr-unpacked``, or ``DIR.knarr-unpacked`` for bare files. It names the
image, by digest, and says for each path what the kernel will say otherwise once somebody has touched it: layer/scan.py.
"""

from __future__ import annotations

import os
from errno import EINVAL, ENOENT

from knarr.base import fastjson
from knarr.base.errors import FileError, FormatError, KnarrError, NotFound
from knarr.base.files import read_file, write_atomic
from knarr.base.record import Record
from knarr.engine import host
from knarr.engine.imaging.blobs import Spool
from knarr.engine.imaging.layers import Making, epoch, model_of, put_on_top
from knarr.engine.imaging.opening import open_image
from knarr.layer import scan
from knarr.layer.changeset import changes, copy, from_layers, is_equal, named
from knarr.layer.metadata import is_allowed
from knarr.layer.model import Model, Node
from knarr.layer.scan import Packed
from knarr.layer.tarball import BLOCK, CHAR, FILE, Reader
from knarr.layer.tarwriter import header
from knarr.layer.unpack import materialise, unpacker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from knarr.bundle.options import RunOptions
    from knarr.content.verify import Readable
    from knarr.engine.imaging.image import Image
    from knarr.kernel.userns import IdMap
    from knarr.layer.tarball import Entry
    from knarr.layer.tarwriter import Writable
    from knarr.layer.unpack import Unpacker

RECORD = "knarr-unpacked"
_VERSION = 1
_LIMIT = 512 << 20  # bytes of a record: some four million paths


class Unpacked(Record):
    """What a record says: the reference and digest the files came from, and (``body``) what each path looked like."""

    reference: str
    digest: str
    body: bytes


def record_of(folder: str) -> tuple[str, str]:
    """The directory with the files, and the path of its record: of a bundle, or of bare files. Raises NotFound."""
    path = os.path.abspath(folder)
    if os.path.lexists(f"{path}/{RECORD}"):
        return f"{path}/rootfs", f"{path}/{RECORD}"
    if os.path.lexists(f"{path}.{RECORD}"):
        return path, f"{path}.{RECORD}"
    if not os.path.isdir(path):
        raise NotFound("directory", folder)
    if os.path.isfile(f"{path}/config.json") and os.path.isdir(f"{path}/rootfs"):
        return f"{path}/rootfs", f"{path}/{RECORD}"
    return path, f"{path}.{RECORD}"


def unpack(image: Image, folder: str, *, options: RunOptions | None = None) -> tuple[str, ...]:
    """Unpack an image to a new or empty directory, and write the record to pack it again. Returns warnings.

    With ``options`` the directory becomes a runtime bundle, else it gets the files alone. Without root the owners are
    the user's subordinate ids. Raises FileError, Unsupported, FormatError, DigestMismatch; nothing is left then.
    """
    config = image.image_config()
    ids = host.id_map()

    def fill(rootfs: str) -> tuple[str, ...]:
        return materialise([layer.source() for layer in image.layers], rootfs, ids=ids)

    path = os.path.abspath(folder)
    if options is None:
        notes = fill(path)
        rootfs, record = path, f"{path}.{RECORD}"
    else:
        from knarr.engine.bundles import fill_bundle

        notes = fill_bundle(path, options, config, fill)
        rootfs, record = f"{path}/rootfs", f"{path}/{RECORD}"
    write_record(image, rootfs, record)
    return notes


def write_record(image: Image, rootfs: str, path: str) -> None:
    """Remember what the files look like now; raises FileError."""
    head = {"version": _VERSION, "reference": image.name, "digest": image.digest}
    worker = unpacker(host.id_map())
    try:
        body = worker.record(rootfs)
    finally:
        worker.close()
    try:
        write_atomic(path, fastjson.dumps(head) + b"\n" + body, mode=0o600)
    except OSError as error:
        raise FileError("write", path, error.errno or EINVAL) from None


def read_record(path: str) -> Unpacked:
    """Read a record; raises NotFound, FormatError."""
    try:
        data = read_file(path, _LIMIT)
    except FileError as error:
        if error.number == ENOENT:
            hint = "unpack with: knarr image unpack; or name the image with --base"
            raise NotFound("record", path, hint=hint) from None
        raise
    line, newline, body = data.partition(b"\n")
    try:
        head = fastjson.loads(line, path)
        if not newline or head["version"] != _VERSION:
            raise ValueError
        scan.unpack_record(body)
        return Unpacked(str(head["reference"]), str(head["digest"]), body)
    except (KnarrError, ValueError, KeyError, TypeError):
        raise FormatError(path, "", "is no record of an unpacked image, or one of another version") from None


class Repacked(Record):
    """What came of packing: the image (the old one when nothing changed), and how much of what changed."""

    image: Image
    made: int
    hidden: int
    warnings: tuple[str, ...]


def repack(
    folder: str,
    *,
    base: str = "",
    strict: bool = False,
    masks: Sequence[str] = (),
    mask_volumes: bool = True,
    compression: str = "gzip",
    created_by: str = "",
    refresh: bool = False,
    store: str | None = None,
) -> Repacked:
    """Make a layer of what changed in an unpacked directory, on top of the image it came from.

    A file counts as changed when its inode or change time is another; with ``strict``, or ``base`` (an image to compare
    with, no record needed), contents and metadata are compared instead. What lies at ``masks`` is left alone, and at
    the image's volumes. ``refresh`` writes the record anew, for the image that comes out. Raises NotFound, FileError,
    FormatError, UsageError.
    """
    rootfs, path = record_of(folder)
    known = None if base else read_record(path)
    image = _base_of(known, base, store)
    config = image.image_config()
    paths = [*masks, *((config.get("config") or {}).get("Volumes") or {} if mask_volumes else ())]
    masked = [b"/".join(part for part in os.fsencode(text).split(b"/") if part) for text in paths]
    worker = unpacker(host.id_map())
    try:
        making = Making(image, compression)
        if known is not None and not strict:
            done = _quickly(image, worker, rootfs, making, (known.body, masked))
        else:
            done = _strictly(image, worker, rootfs, making, masked)
    finally:
        worker.close()
    if not done.made and not done.hidden:
        return Repacked(image, 0, 0, done.notes)
    made = put_on_top(image, making, created_by or "knarr image repack")
    if refresh:
        write_record(made, rootfs, path)
    return Repacked(made, done.made, done.hidden, done.notes)


def _base_of(known: Unpacked | None, base: str, store: str | None) -> Image:
    """The image the files came from: by its name if that still means it, else by its digest."""
    if known is None:
        return open_image(base, store=store)
    where = known.reference
    try:
        image = open_image(where, store=store)
        if image.digest == known.digest:
            return image
        image.close()
    except NotFound:
        pass
    head = where.partition(":")[0]
    again = f"oci:{where.split(':')[1]}@{known.digest}" if head == "oci" else known.digest
    try:
        return open_image(again, store=store)
    except KnarrError:
        raise NotFound(
            "image", f"{known.digest}, which was {where},", hint="name the image to compare with: --base IMAGE"
        ) from None


def _quickly(image: Image, worker: Unpacker, rootfs: str, making: Making, how: tuple[bytes, list[bytes]]) -> Packed:
    """Write what changed since the record (``how``: it, and masks) was written."""
    ids = host.id_map()
    if ids is None or not ids.squash:
        return worker.pack(rootfs, making.out, known=how[0], masks=how[1], latest=epoch())
    spool = Spool()
    done = worker.pack(rootfs, spool, known=how[0], masks=how[1], latest=epoch())
    _owned_tar(spool.open(), model_of(image) if done.made else Model(), making.out)
    return done


def _strictly(image: Image, worker: Unpacker, rootfs: str, making: Making, masked: list[bytes]) -> Packed:
    """Compare everything with what the image has; write what differs.

    The directory comes as a tar, so that it may be read by somebody else: once to be hashed, once more for contents.
    """
    spool = Spool()
    notes = worker.pack(rootfs, spool, known=None, masks=masked, latest=None).notes
    model = Model()
    model.apply(spool.open(), hashed=True, what=rootfs)
    nodes = model.flat()
    ids = host.id_map()
    below = _below(image, nodes, ids, scan.Masks(masked))
    if ids is not None and ids.squash:
        for path, node in nodes.items():
            _own(node.entry, below.get(path))
    found = changes(below, nodes, is_equal)
    latest = epoch()
    if latest is not None:
        for _path, node in found.made:
            node.entry.mtime = min(node.entry.mtime, latest)
    from_layers(found, nodes, making.out, lambda _number: spool.open())
    return Packed(len(found.made) + len(found.links), len(found.hidden), notes)


def _below(image: Image, nodes: dict[bytes, Node], ids: IdMap | None, masked: scan.Masks) -> dict[bytes, Node]:
    """The image's own tree as it would lie on this disk: without what is masked, and what unpacking leaves out."""
    found: dict[bytes, Node] = {}
    copies: dict[int, Node] = {}
    for path, node in model_of(image, hashed=True).flat().items():
        if path in masked:
            continue
        if node.entry.kind in (CHAR, BLOCK) and ids is not None and path not in nodes:
            continue  # devices were not made
        found[path] = copies.setdefault(id(node), _stored(node))
    return found


def _stored(node: Node) -> Node:
    """A node with those attributes only that unpacking sets."""
    entry = node.entry
    if not entry.xattrs:
        return node
    kept = {
        name: value
        for name, value in sorted(entry.xattrs.items())
        if is_allowed(os.fsdecode(name)) and (name != b"security.capability" or entry.kind == FILE)
    }
    entry = named(entry, entry.name)
    entry.xattrs = kept or None
    made = Node(entry, node.layer, node.number, node.digest)
    made.children = node.children
    return made


def _own(entry: Entry, old: Node | None) -> None:
    """Give a file the owner it has in the image: where one id stands for all, the disk does not know it."""
    if old is not None:
        entry.uid, entry.gid = old.entry.uid, old.entry.gid


def _owned_tar(stream: Readable, model: Model, out: Writable) -> None:
    """The same changeset with the owners the image gives."""
    reader = Reader(stream)
    for entry in reader:
        _own(entry, model.get(entry.name.rstrip(b"/").removeprefix(b".")))
        out.write(header(entry))
        copy(reader.chunks(), entry.size, out)
    out.write(bytes(1024))
