"""``knarr image copy``: an image from anywhere to anywhere."""

from __future__ import annotations

from knarr.base.errors import UsageError
from knarr.cli.command import Parser
from knarr.cli.output import put, put_json, size
from knarr.cli.progress import watching

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable
    from typing import Any

    from knarr.image.copy import Copied, Options

PLACES = "docker://NAME, oci:DIR, oci-archive:FILE, docker-archive:FILE, dir:DIR, docker-daemon:NAME, store:NAME, -"


def parse_copy() -> Parser:
    """The parser of ``knarr image copy``."""
    parser = Parser(
        "image copy",
        f"Copy an image, verified, without changing its digest where that is possible. Places are\n{PLACES}\n"
        "(- is an archive on standard input or output; a bare name is a registry's). Prints the digest.",
        "[OPTION…] SOURCE TARGET",
        "  knarr image copy alpine:3.20 oci:./layout:3.20\n"
        "  knarr image copy --all --referrers docker://quay.io/a/b:1 docker://registry.local:5000/b:1\n"
        "  knarr image copy store:myimage:1 - | ssh host knarr image copy - store:myimage:1\n"
        "  knarr image copy --compress zstd:9 oci:./in:v1 oci:./out:v1",
    )
    add_choice(parser)
    add_form(parser)
    parser.add_argument("--referrers", action="store_true", help="also what refers to it: signatures, SBOMs, …")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be copied")
    parser.add_argument("--jobs", type=int, default=4, metavar="N", help="blobs at the same time (4)")
    parser.add_argument("--insecure-source", action="store_true", help="allow plain HTTP and unverified TLS there")
    parser.add_argument("--insecure-target", action="store_true", help="the same for the target")
    parser.add_argument("-q", "--quiet", action="store_true", help="show no progress")
    parser.add_argument("--json", action="store_true", help="print all about the copy")
    parser.add_argument("source", metavar="SOURCE", help="where it is")
    parser.add_argument("target", metavar="TARGET", help="where it shall be")
    return parser


def add_choice(parser: Parser) -> None:
    """Add the options that say what of an image is meant."""
    parser.add_argument("--all", action="store_true", help="all platforms, with the index itself")
    parser.add_argument("--platform", action="append", default=[], metavar="OS/ARCH",
                        help="for this platform; several make an index of them")  # fmt: skip


def add_form(parser: Parser) -> None:
    """Add the options that say what form the copy shall have."""
    parser.add_argument("--preserve-digests", action="store_true", help="fail rather than change a digest")
    parser.add_argument("--format", default="", metavar="oci|docker", help="convert manifests to this format")
    parser.add_argument("--compress", default="", metavar="HOW",
                        help="compress layers so: gzip, zstd, none; gzip:9, zstd:19 at a level; estargz,\n"
                        "zstd:chunked with a table of contents")  # fmt: skip
    parser.add_argument("--sign-key", default="", metavar="FILE",
                        help="sign the copy with this key, as knarr image sign does")  # fmt: skip


def options_from(given: argparse.Namespace) -> Options:
    """Return the options of a copy from parsed words, those a command does not have as usual."""
    from knarr.engine.copying import options_of

    return options_of(
        getattr(given, "platform", []),
        all=getattr(given, "all", False),
        format=getattr(given, "format", ""),
        compress=getattr(given, "compress", ""),
        preserve_digests=getattr(given, "preserve_digests", False),
        referrers=getattr(given, "referrers", False),
        dry_run=getattr(given, "dry_run", False),
        jobs=getattr(given, "jobs", 4),
    )


def do_copy(arguments: list[str]) -> int:
    """Copy an image."""
    given = parse_copy().parse_args(arguments)
    from knarr.engine.copying import Access, copy
    from knarr.engine.paths import places

    signer = signer_from(given, given.target, insecure=given.insecure_target)
    with watching(quiet=given.quiet) as watcher:
        copied = copy(
            places(),
            given.source,
            given.target,
            options_from(given),
            source_access=Access(insecure=given.insecure_source),
            target_access=Access(insecure=given.insecure_target),
            progress=watcher.blob if watcher else None,
        )
    if signer is not None:
        signer(copied)
    tell(copied, given.target, dry_run=given.dry_run, as_json=given.json)
    return 0


def signer_from(given: argparse.Namespace, target: str, *, insecure: bool) -> Callable[[Copied], object] | None:
    """Return what signs the copy, if that is wanted; raises UsageError, FileError before anything is copied."""
    if not given.sign_key:
        return None
    if insecure or getattr(given, "dry_run", False):
        other = "an insecure target" if insecure else "--dry-run"
        raise UsageError(f"--sign-key cannot be used with {other}", hint="knarr image sign signs what is there already")
    from knarr.cli.image.sign import password
    from knarr.engine.copying import sign_copy, signable
    from knarr.engine.imaging.signing import load_private

    key = load_private(given.sign_key, password())
    signable(target)
    return lambda copied: sign_copy(target, copied.digest, key)


def tell(copied: Copied, target: str, *, dry_run: bool = False, as_json: bool = False) -> None:
    """Print what was copied: the digest, or everything; on standard error when the image itself goes out."""
    if as_json:
        show = facts(copied, dry_run=dry_run)
        if _is_output(target):
            _to_stderr(show)
        else:
            put_json(show)
        return
    if not dry_run:
        if not _is_output(target):
            put(copied.digest)
        return
    put(f"digest:   {copied.digest}" + (" (before its layers are compressed anew)" if copied.recompressed else ""))
    put(f"platform: {', '.join(copied.platforms) or 'none'}")
    put(f"to copy:  {copied.copied[0]} blobs, {size(copied.copied[1])}")
    put(f"there:    {copied.present[0]} blobs, {size(copied.present[1])}")
    if copied.recompressed:
        put(f"anew:     {copied.recompressed} layers")
    for digest in copied.referrers:
        put(f"refers:   {digest}")


def facts(copied: Copied, *, dry_run: bool = False) -> dict[str, Any]:
    """Return all about a copy as a JSON-ready object."""
    return {
        "digest": copied.digest,
        "mediaType": copied.descriptor["mediaType"],
        "sourceDigest": copied.source_digest,
        "platforms": list(copied.platforms),
        "copied": {"blobs": copied.copied[0], "bytes": copied.copied[1]},
        "present": {"blobs": copied.present[0], "bytes": copied.present[1]},
        "recompressed": copied.recompressed,
        "referrers": list(copied.referrers),
        "dryRun": dry_run,
    }


def _is_output(target: str) -> bool:
    return (
        target == "-"
        or target in ("oci-archive:-", "docker-archive:-")
        or target.startswith(("oci-archive:-:", "docker-archive:-:"))
    )


def _to_stderr(value: dict[str, Any]) -> None:
    import sys

    from knarr.base import fastjson

    sys.stderr.write(fastjson.dumps(value, indent=True).decode() + "\n")
