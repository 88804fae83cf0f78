"""Mount options of runtime-spec config.md."""

from __future__ import annotations

import pytest

from knarr.base.errors import SpecError
from knarr.plan import mountopts, ops
from knarr.plan.mountopts import parse_options

RO, NOSUID, NODEV, NOEXEC = mountopts.RDONLY, mountopts.NOSUID, mountopts.NODEV, mountopts.NOEXEC


@pytest.mark.parametrize(
    ("options", "attr_set", "attr_clear"),
    [
        ([], 0, 0),
        (["defaults"], 0, 0),
        (["ro", "nosuid", "nodev", "noexec"], RO | NOSUID | NODEV | NOEXEC, 0),
        (["ro", "rw"], 0, RO),
        (["rw", "ro"], RO, 0),
        (["strictatime"], 0x20, 0x70),
        (["noatime"], 0x10, 0x70 & ~0x10),
        (["relatime"], 0, 0x70),
        (["nodiratime", "nosymfollow"], 0x200080, 0),
    ],
)
def test_attributes_later_ones_win(options: list[str], attr_set: int, attr_clear: int) -> None:
    parsed = parse_options(options, "/mounts/0")
    assert parsed.attr_set == attr_set
    assert parsed.attr_clear & ~parsed.attr_set == attr_clear & ~attr_set


def test_recursive_attributes_are_kept_apart() -> None:
    parsed = parse_options(["rbind", "ro", "rnosuid", "rnoexec"], "")
    assert (parsed.bind, parsed.recursive) == (True, True)
    assert (parsed.attr_set, parsed.rec_set) == (RO, NOSUID | NOEXEC)


def test_bind_is_not_recursive_and_propagation_is_the_last_named() -> None:
    parsed = parse_options(["bind", "rshared", "rprivate"], "")
    assert (parsed.bind, parsed.recursive) == (True, False)
    assert parsed.propagation == mountopts.MS_PRIVATE | mountopts.MS_REC


def test_all_else_goes_to_the_file_system_in_order() -> None:
    parsed = parse_options(["nosuid", "mode=755", "size=65536k", "sync"], "")
    assert parsed.data == ("mode=755", "size=65536k", "sync")


def test_options_about_links() -> None:
    assert parse_options(["bind"], "").links == 0
    assert parse_options(["bind", "src-nofollow"], "").links == ops.SOURCE_NOFOLLOW
    assert parse_options(["dest-nofollow", "src-nofollow"], "").links == ops.SOURCE_NOFOLLOW | ops.TARGET_NOFOLLOW
    assert parse_options(["copy-symlink"], "").links == ops.COPY_LINK
    with pytest.raises(SpecError, match="/mounts/4/options: copy-symlink excludes"):
        parse_options(["bind", "copy-symlink", "dest-nofollow"], "/mounts/4")
