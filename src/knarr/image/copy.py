"""From any source to any sink: choose, convert if asked, carry, name. The one way images move.

The order makes it safe to be stopped anywhere: documents are read and checked first, blobs are carried, then the
manifests, what they refer to before them, and the name last.
"""

from __future__ import annotations

from knarr.base.errors import UsageError
from knarr.base.record import Record
from knarr.content.compressor import Compression
from knarr.content.stopping import breaking
from knarr.content.verify import Resumable
from knarr.image import tree
from knarr.image.convert import FORMATS, converted, format_of
from knarr.image.platform import host_platform
from knarr.image.recompress import Recompressed, recompress, to_change
from knarr.image.resolve import embedded
from knarr.image.sink import JOBS
from knarr.image.transfer import Report, transfer
from knarr.spec import mediatypes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from knarr.content.part import Source
    from knarr.content.store import Store
    from knarr.image.platform import Platform
    from knarr.image.recompress import Writer
    from knarr.image.sink import ImageSink
    from knarr.image.source import ImageSource
    from knarr.image.transfer import Progress
    from knarr.image.tree import Node
    from knarr.spec.image import Descriptor

_KEEP = "digests were to be preserved"

REFERRERS_DEPTH = 4
"""Levels of what refers to what refers to an image."""


class Options(Record):
    """How to copy.

    ``platforms``: none is this machine's, one gives its manifest, several an index of theirs; ``all`` gives
    everything. ``format`` is oci, docker or "" (as it is, or as the sink needs it). With ``preserve_digests``
    the copy has the same digest or fails. ``referrers``: also what refers to it (signatures and the like).
    ``compress``: layers that are compressed otherwise are made anew, None leaves them to the sink's needs; ``writer``
    writes those with a table of contents (the layer room's part, wired in by the engine).
    ``dry_run``: only look what would be copied. ``jobs``: most blobs at the same time.
    """

    platforms: tuple[Platform, ...] = ()
    all: bool = False
    format: str = ""
    compress: Compression | None = None
    writer: Writer | None = None
    preserve_digests: bool = False
    referrers: bool = False
    dry_run: bool = False
    jobs: int = JOBS


class Copied(Record):
    """What was copied: the digest and media type of what the name means now, and what it was at the source.

    ``copied`` and ``present`` are (blobs, bytes) that were carried and that were there before; ``referrers`` the
    digests of what refers to it and came along. ``recompressed`` layers were made anew; a dry run does not make
    them, and then ``descriptor`` and sizes are those without.
    """

    descriptor: Descriptor
    source_digest: str
    platforms: tuple[str, ...]
    copied: tuple[int, int]
    present: tuple[int, int]
    referrers: tuple[str, ...] = ()
    recompressed: int = 0

    @property
    def digest(self) -> str:
        """The digest of the copy."""
        return self.descriptor["digest"]


def copy_image(
    source: ImageSource,
    sink: ImageSink,
    options: Options | None = None,
    *,
    progress: Progress | None = None,
    store: Store | None = None,
) -> Copied:
    """Copy what ``source`` names into ``sink``; neither is closed, and the sink is not finished.

    Blobs that are there are not carried again; documents that ``store`` has are read there. ``progress`` is called
    with each blob's state, one call at a time, from several threads. On any error, Ctrl-C included, every thread
    has ended. Raises what the source and the sink raise; NotFound when there is no such platform; UsageError
    for options that cannot be had together; SpecError and Unsupported for documents that make no image.
    """
    options = options or Options()
    report = Report(progress)

    def stop() -> None:
        report.stopped = True
        source.abort()
        sink.abort()

    with breaking(stop):
        return _copied(source, sink, options, report, store)


def _copied(source: ImageSource, sink: ImageSink, options: Options, report: Report, store: Store | None) -> Copied:
    node, index = chosen(source, options, store)
    _check(node, sink, options)
    how = options.compress or (Compression(sink.compression) if sink.compression is not None else None)
    changing = to_change(node.manifests(), how) if how is not None else {}
    if changing and options.preserve_digests:
        raise UsageError(f"{len(changing)} layers of {source.what} would be compressed anew", hint=_KEEP)
    layers = Recompressed()
    try:
        if changing and how is not None and not options.dry_run:
            layers = recompress(source, changing, how, report, options.jobs, options.writer)
        made = _fitting(node, sink, options, layers)
        notes = list(_referrers(source, made, store)) if options.referrers else []
        _carry(source, sink, [made, *(note for note, _ in notes)], layers, report, options)
        report.check()
        if not options.dry_run:
            _put_documents(sink, made, report)
            sink.put_name(made.descriptor, index)
            for note, subject in notes:
                _put_documents(sink, note, report)
                sink.put_referrer(note.descriptor, subject)
    finally:
        layers.close()
    carried = "waiting" if options.dry_run else "done"
    return Copied(
        made.descriptor,
        node.digest,
        tuple(_platforms(made)),
        (report.count(carried), report.bytes(carried)),
        (report.count("present"), report.bytes("present")),
        tuple(note.digest for note, _ in notes),
        len(changing),
    )


def chosen(source: ImageSource, options: Options, store: Store | None) -> tuple[Node, str]:
    """Return what of a source is to be copied, and the digest of the index it was found in."""
    if options.all:
        return tree.everything(source, store), ""
    if len(options.platforms) > 1:
        return tree.some_platforms(source, options.platforms, store), ""
    return tree.one(source, options.platforms[0] if options.platforms else host_platform(), store)


def _check(node: Node, sink: ImageSink, options: Options) -> None:
    """Raise UsageError for what the sink cannot hold."""
    if options.format and options.format not in FORMATS:
        raise UsageError(f"format {options.format!r} is not known", hint=f"there are {' and '.join(FORMATS)}")
    if options.format and options.format not in sink.formats:
        raise UsageError(f"{sink.what} cannot hold {options.format} images")
    if node.is_index and not sink.indexes:
        hint = f"choose one with --platform; there is {', '.join(_platforms(node)) or 'none that is stated'}"
        raise UsageError(f"{sink.what} holds images for one platform only", hint=hint)


def _fitting(node: Node, sink: ImageSink, options: Options, layers: Recompressed) -> Node:
    """Return ``node`` in a form the sink can hold and the options ask for; raises UsageError."""
    format = options.format
    if not format and not sink.keeps and not options.preserve_digests:
        format = sink.formats[0]
    if options.compress is not None and options.compress.table:
        docker = [one for one in node.manifests() if (format or format_of(one)) == "docker"]
        if docker:
            why = f"{sink.what} would get Docker's manifests, which have no annotations, and so no tables of contents"
            raise UsageError(why, hint="copy it with --format oci")
    made = converted(node, format, layers.layers)
    if made.digest != node.digest:
        if options.preserve_digests:
            raise UsageError(f"{node.digest} would become {made.digest}", hint=_KEEP)
        if options.referrers:
            why = f"{node.digest} would become {made.digest}, and what refers to it would no longer"
            raise UsageError(why, hint="copy it unchanged, or without referrers")
    return made


def _carry(
    source: ImageSource,
    sink: ImageSink,
    nodes: list[Node],
    layers: Recompressed,
    report: Report,
    options: Options,
) -> None:
    blobs: dict[str, tuple[Descriptor, Source]] = {}
    for node in nodes:
        for manifest in node.manifests():
            for kind, part in manifest.parts():
                report.start(part, kind)
                if part["digest"] not in blobs:
                    data = layers.open(part["digest"]) or _data(source, manifest, kind, part)
                    blobs[part["digest"]] = part, data
        for one in node.walk():
            report.start(one.descriptor, "manifest")
    # Configs first: they are small, and whoever watches learns early whether the sink takes anything at all.
    order = sorted(blobs.values(), key=lambda blob: blob[0]["mediaType"] not in mediatypes.CONFIGS)
    if options.dry_run:
        for descriptor, _ in order:
            if sink.has(descriptor):
                report.present(descriptor)
        return
    expect: Callable[[Node], None] | None = getattr(sink, "expect", None)
    if expect is not None:  # a sink that does more with an image than keep it
        expect(nodes[0])
    sink.begin([descriptor for descriptor, _ in order])
    transfer(order, source, sink, report, options.jobs)


def _put_documents(sink: ImageSink, node: Node, report: Report) -> None:
    for one in node.walk():
        there = sink.has(one.descriptor)
        sink.put_document(one.descriptor, one.data)
        if there:
            report.present(one.descriptor)
        else:
            report.finish(one.descriptor)


def _data(source: ImageSource, manifest: Node, kind: str, part: Descriptor) -> Source:
    """Return where the bytes of a blob come from."""
    if kind == "config" and manifest.config is not None:
        return manifest.config
    data = embedded(part)
    if data is not None:
        return data
    open_from: Callable[[Descriptor, int], Any] | None = getattr(source, "open_from", None)
    if open_from is not None:  # a source that can begin in the middle of a blob
        return Resumable(lambda offset: open_from(part, offset))
    return lambda: source.open_blob(part)


def _referrers(source: ImageSource, node: Node, store: Store | None) -> Iterator[tuple[Node, str]]:
    """Yield (manifest, digest it refers to) of all that refers to ``node`` or anything in it."""
    find: Callable[[str], list[Descriptor]] | None = getattr(source, "referrers", None)
    if find is None:
        raise UsageError(f"{source.what} cannot say what refers to an image")
    reader = tree.Reader(source, store)
    seen: set[str] = set()
    level = [one.digest for one in node.walk()]
    for _ in range(REFERRERS_DEPTH):
        found = []
        for subject in level:
            for descriptor in find(subject):
                if descriptor["digest"] in seen:
                    continue
                seen.add(descriptor["digest"])
                note = reader.node(descriptor)
                found.append(note.digest)
                yield note, subject
        level = found


def _platforms(node: Node) -> list[str]:
    """Return the platforms of the images in a tree, as people write them."""
    from knarr.base import fastjson
    from knarr.image.platform import platform_of

    found = []
    for manifest in node.manifests():
        stated: Any = manifest.descriptor.get("platform")
        if manifest.config is not None:
            stated = fastjson.loads(manifest.config, f"config of {manifest.digest}")
        if stated is not None and stated.get("os") != "unknown":
            found.append(str(platform_of(stated)))
    return list(dict.fromkeys(found))
