"""Platforms: what an image runs on, which of an index's images fits (image-index.md, platform).

Words are GOOS and GOARCH; variants follow the order containerd and Podman use: an arm/v7 machine also runs v6 and
v5, an amd64/v3 one also v2 and v1, best first. Values out of an image are compared and shown, never used as
anything else.
"""

from __future__ import annotations

import os

from knarr.base.errors import UsageError
from knarr.base.record import Record
from knarr.content.names import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

_WORD = frozenset("abcdefghijklmnopqrstuvwxyz0123456789._-")

# what people and uname say -> (architecture, variant)
_ARCHITECTURES = {
    "x86_64": ("amd64", ""),
    "x86-64": ("amd64", ""),
    "i386": ("386", ""),
    "i486": ("386", ""),
    "i586": ("386", ""),
    "i686": ("386", ""),
    "aarch64": ("arm64", ""),
    "aarch64_be": ("arm64be", ""),
    "armhf": ("arm", "v7"),
    "armel": ("arm", "v6"),
    "armv5l": ("arm", "v5"),
    "armv6l": ("arm", "v6"),
    "armv7l": ("arm", "v7"),
    "armv8l": ("arm", "v8"),
}
_ARM = ("v8", "v7", "v6", "v5")
_AMD64 = ("v4", "v3", "v2", "v1")


class Platform(Record):
    """An operating system, an architecture and, where there are several, the variant of it."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        words = [self.os, self.architecture, *([self.variant] if self.variant else [])]
        return printable("/".join(words), 80)


def host_platform() -> Platform:
    """Return the platform of this machine."""
    return _normal("linux", os.uname().machine, "")


def parse_platform(text: str) -> Platform:
    """Read ``os/architecture[/variant]``, or an architecture alone; raises UsageError.

    ``x86_64``, ``aarch64``, ``armhf`` and the like are understood.
    """
    words = text.lower().split("/")
    if not all(words) or len(words) > 3 or not all(_WORD.issuperset(word) and word[0] not in "._-" for word in words):
        raise UsageError(f"platform {text!r} is not written os/architecture[/variant], as in linux/arm64")
    if len(words) == 1:
        return _normal("linux", words[0], "")
    return _normal(words[0], words[1], words[2] if len(words) == 3 else "")


def platform_of(document: Mapping[str, Any]) -> Platform:
    """Return the platform in an index's ``platform`` object or an image config, spelled the usual way."""
    return _normal(document.get("os", ""), document.get("architecture", ""), document.get("variant", ""))


def _normal(system: str, architecture: str, variant: str) -> Platform:
    architecture, implied = _ARCHITECTURES.get(architecture, (architecture, ""))
    variant = variant or implied
    if variant[:1].isdigit():
        variant = f"v{variant}"
    if (architecture, variant) in {("arm64", "v8"), ("amd64", "v1")}:
        variant = ""  # the baseline, which is usually left unsaid
    if (architecture, variant) == ("arm", ""):
        variant = "v7"  # what arm alone has come to mean
    return Platform(system, architecture, variant)


def accepted(wanted: Platform) -> list[Platform]:
    """Return the platforms whose images run on ``wanted``, best first."""
    order: tuple[str, ...] = ()
    if wanted.architecture == "arm" and wanted.variant in _ARM:
        order = _ARM
    elif wanted.architecture == "amd64" and (wanted.variant or "v1") in _AMD64:
        order = _AMD64
    elif wanted.architecture == "arm64" and wanted.variant.startswith("v9"):
        return [wanted, wanted.replace(variant="v9"), wanted.replace(variant="")]
    if not order:
        return [wanted]
    start = order.index(wanted.variant or "v1")
    return [_normal(wanted.os, wanted.architecture, variant) for variant in order[start:]]


def runs(image: Platform, wanted: Platform) -> bool:
    """Say whether an image of platform ``image`` is right where ``wanted`` was asked for."""
    return image in accepted(wanted)
