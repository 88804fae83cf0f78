"""``knarr image artifact``: files in a registry, layout or store that are no image, alone or attached to one."""

from __future__ import annotations

import os

from knarr.base.errors import UsageError
from knarr.cli.command import Parser
from knarr.cli.group import Group
from knarr.cli.image.common import SOURCES, pairs
from knarr.cli.output import put

COMMANDS = {
    "push": ("artifact", "put files under a name, anywhere images can be"),
    "attach": ("artifact", "attach files to an image: they refer to it and have no name"),
    "pull": ("artifact", "write an artifact's files into a directory"),
}

GROUP = Group(
    "image artifact",
    "knarr.cli.image",
    "Files beside images: reports, SBOMs, charts, models.",
    COMMANDS,
    "  knarr image artifact push docker://ghcr.io/me/chart:1 chart.tgz:application/gzip\n"
    "  knarr image artifact attach --type application/spdx+json app:1 sbom.json",
)


def parse_artifact() -> Parser:
    """The parser of ``knarr image artifact`` itself."""
    return GROUP.parser()


def do_artifact(arguments: list[str]) -> int:
    """Run one of its commands."""
    return GROUP.run(arguments)


def _parser(name: str, summary: str, usage: str, examples: str) -> Parser:
    parser = Parser(f"image artifact {name}", summary, usage, examples)
    parser.add_argument("--type", default="", metavar="TYPE", help="the artifact's type, a media type")
    parser.add_argument("-a", "--annotation", action="append", default=[], metavar="NAME=VALUE", help="an annotation")
    return parser


def parse_push() -> Parser:
    """The parser of ``knarr image artifact push``."""
    parser = _parser(
        "push",
        "Put files as an artifact under a name. The same files give the same digest, which is printed.",
        "[--type TYPE] [--config FILE:TYPE] [--annotation NAME=VALUE…] DEST [FILE[:TYPE]…]",
        "  knarr image artifact push --type application/vnd.example.model oci:./layout:m1 weights.bin\n"
        "  knarr image artifact push docker://ghcr.io/me/chart:1 chart.tgz:application/gzip",
    )
    parser.add_argument("--config", default="", metavar="FILE:TYPE", help="a config of its own; else the empty one")
    parser.add_argument("destination", metavar="DEST", help="a name for the store, oci:DIR[:TAG], docker://NAME, …")
    parser.add_argument("files", metavar="FILE[:TYPE]", nargs="*", help="a file, and its media type")
    return parser


def do_push(arguments: list[str]) -> int:
    """Push an artifact."""
    given = parse_push().parse_args(arguments)
    from knarr.engine.imaging.artifacts import DEFAULT_TYPE, artifact_of

    config = None
    if given.config:
        path, kind = _typed(given.config)
        if not kind:
            raise UsageError(f"--config {given.config!r} names no media type", hint="as FILE:application/json")
        config = _read(path), kind
    kind = given.type or (DEFAULT_TYPE if config is None else config[1])
    files = [_typed(text) for text in given.files]
    annotations = pairs(given.annotation, "--annotation")
    made = artifact_of(files, kind=kind, annotations=annotations, config=config)
    put(made.save(given.destination).digest)
    return 0


def parse_attach() -> Parser:
    """The parser of ``knarr image artifact attach``."""
    parser = _parser(
        "attach",
        "Attach files to an image or index, where that is: a registry, layout or the store. Prints the digest.",
        "--type TYPE [--platform OS/ARCH] [--annotation NAME=VALUE…] IMAGE [FILE[:TYPE]…]",
        "  knarr image artifact attach --type application/spdx+json app:1 sbom.spdx.json:application/spdx+json\n"
        "  knarr image referrers app:1",
    )
    parser.add_argument("--platform", default="", metavar="OS/ARCH", help="to the image of an index for that platform")
    parser.add_argument("image", metavar="IMAGE", help=SOURCES)
    parser.add_argument("files", metavar="FILE[:TYPE]", nargs="*", help="a file, and its media type")
    return parser


def do_attach(arguments: list[str]) -> int:
    """Attach an artifact."""
    given = parse_attach().parse_args(arguments)
    from knarr.engine.imaging.artifacts import artifact_of, attach, subject_of

    subject = subject_of(given.image, given.platform)
    try:
        files = [_typed(text) for text in given.files]
        annotations = pairs(given.annotation, "--annotation")
        made = artifact_of(files, kind=given.type, annotations=annotations, subject=subject.descriptor)
    finally:
        subject.close()
    attach(made, given.image)
    put(made.digest)
    return 0


def parse_pull() -> Parser:
    """The parser of ``knarr image artifact pull``."""
    parser = Parser(
        "image artifact pull",
        "Write the files of an artifact into a directory, under the names it gives them. Prints their paths.",
        "[--overwrite] ARTIFACT [DIR]",
        "  knarr image artifact pull docker://ghcr.io/me/chart:1\n"
        "  knarr image artifact pull oci:./layout@sha256:… ./reports",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")
    parser.add_argument("artifact", metavar="ARTIFACT", help=SOURCES)
    parser.add_argument("directory", metavar="DIR", nargs="?", default=".", help="where to; here if not given")
    return parser


def do_pull(arguments: list[str]) -> int:
    """Pull an artifact."""
    given = parse_pull().parse_args(arguments)
    from knarr.engine.imaging.artifacts import pull

    for path in pull(given.artifact, given.directory, overwrite=given.overwrite):
        put(path)
    return 0


def _typed(text: str) -> tuple[str, str]:
    """``FILE:type/subtype``; a colon without a media type after it belongs to the name."""
    path, colon, kind = text.rpartition(":")
    if colon and "/" in kind and not os.path.lexists(text):
        return path, kind
    return text, ""


def _read(path: str) -> bytes:
    from knarr.base.files import read_file

    return read_file(path, 4 << 20)
