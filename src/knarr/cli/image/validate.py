"""``knarr image validate``: everything the image specification asks for, checked."""

from __future__ import annotations

from knarr.cli.command import Parser
from knarr.cli.image.common import add_json, wants_json
from knarr.cli.output import clean, put, put_json, say


def parse_validate() -> Parser:
    """The parser of ``knarr image validate``."""
    parser = Parser(
        "image validate",
        "Check images, layouts and archives against the image specification, all platforms; all findings are listed."
        " Ends with 1 when there is an error, with --strict also when there is a warning.",
        "[--fast] [--strict] [--json] IMAGE…",
        "  knarr image validate alpine\n  knarr image validate oci:./layout       the whole layout\n"
        "  knarr image validate --json docker-archive:saved.tar docker://ghcr.io/example/app:1",
    )
    parser.add_argument("--fast", action="store_true", help="documents only, do not read layers")
    parser.add_argument("--strict", action="store_true", help="warnings count as errors")
    add_json(parser)
    parser.add_argument("images", metavar="IMAGE", nargs="+",
                        help="as for other commands; oci:DIR without a tag is the whole layout")  # fmt: skip
    return parser


def do_validate(arguments: list[str]) -> int:
    """Check."""
    given = parse_validate().parse_args(arguments)
    as_json = wants_json(given)
    from knarr.engine.imaging.validate import validate

    bad = False
    told = []
    for text in given.images:
        found = validate(text, layers=not given.fast)
        bad = bad or any(finding.level == "error" or given.strict for finding in found)
        told.append({"image": text, "findings": [finding.told() for finding in found]})
        if not as_json:
            for finding in found:
                put(clean(f"{text}: {finding}"))
            if not found:
                say(f"{clean(text)}: no findings")
    if as_json:
        put_json(told)
    return 1 if bad else 0
