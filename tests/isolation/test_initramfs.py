"""The guest's first root, read back as the kernel's buffer-format.rst has it."""

from __future__ import annotations

import stat

import pytest

from knarr.isolation.initramfs import Entry, archive, initramfs


def members(packed: bytes) -> list[tuple[str, int, bytes, tuple[int, int]]]:
    """Name, mode, content and device of each entry, read as buffer-format.rst says."""
    found: list[tuple[str, int, bytes, tuple[int, int]]] = []
    at = 0
    while True:
        assert packed[at : at + 6] == b"070701"
        fields = [int(packed[at + 6 + 8 * each : at + 14 + 8 * each], 16) for each in range(13)]
        mode, size, device, length = fields[1], fields[6], (fields[9], fields[10]), fields[11]
        name = packed[at + 110 : at + 110 + length - 1].decode()
        start = (at + 110 + length + 3) & ~3
        at = (start + size + 3) & ~3
        if name == "TRAILER!!!":
            assert not packed[at:].strip(b"\0")
            return found
        found.append((name, mode, packed[start : start + size], device))


def test_holds_the_init_and_its_modules_in_order() -> None:
    found = members(initramfs(b"ELF", [("b.ko", b"second letter"), ("a.ko", b"1")]))
    by_name = {name: (mode, data, device) for name, mode, data, device in found}
    assert by_name["init"] == (stat.S_IFREG | 0o755, b"ELF", (0, 0))
    assert by_name["modules"][1] == b"/lib/b.ko\n/lib/a.ko\n"
    assert by_name["lib/b.ko"][1] == b"second letter"
    assert by_name["dev/console"] == (stat.S_IFCHR | 0o600, b"", (5, 1))
    assert by_name["dev/null"] == (stat.S_IFCHR | 0o666, b"", (1, 3))


def test_without_modules_there_is_no_list() -> None:
    assert "modules" not in [name for name, *_ in members(initramfs(b"x"))]


def test_is_the_same_for_the_same_files() -> None:
    assert initramfs(b"x", [("m", b"y")]) == initramfs(b"x", [("m", b"y")])
    assert len(initramfs(b"x")) % 512 == 0


@pytest.mark.parametrize("name", ["", "/init", "a/..", "lib/", "init", "no\0", "."])
def test_a_name_that_cannot_be_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="cannot be the name"):
        initramfs(b"x", more=[Entry(name, stat.S_IFREG | 0o644)])


def test_a_directory_comes_before_what_is_in_it() -> None:
    with pytest.raises(ValueError, match="before its directory"):
        archive([Entry("etc/hosts", stat.S_IFREG)])
    with pytest.raises(ValueError, match="before its directory"):
        archive([Entry("etc", stat.S_IFREG), Entry("etc/hosts", stat.S_IFREG)])


def test_a_module_is_one_line_of_the_list() -> None:
    for name in ("a\n/init", "../a"):
        with pytest.raises(ValueError, match="one line"):
            initramfs(b"x", [(name, b"")])


def test_what_does_not_fit_a_field_is_refused() -> None:
    with pytest.raises(ValueError, match="too large"):
        archive([Entry("null", stat.S_IFCHR, device=(1 << 32, 3))])
