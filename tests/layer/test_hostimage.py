"""Layers made of host programs: they start in a root that has nothing else; the writer's archives read back."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import struct
import subprocess
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trees import ROOT, directory, needs_root, scratch

from knarr.base.errors import FormatError, NotFound, Unsupported, UsageError
from knarr.kernel.mount import MNT_DETACH, mount, umount2
from knarr.kernel.userns import IdMap
from knarr.layer.apply import apply_layer
from knarr.layer.elf import Finder, read_cache, read_elf
from knarr.layer.hostimage import host_layer
from knarr.layer.tarball import CHAR, DIR, FILE, HARDLINK, SYMLINK, Entry, Reader
from knarr.layer.tarwriter import Writer

if TYPE_CHECKING:
    from collections.abc import Iterator

OWN = None if ROOT else IdMap(((0, os.geteuid(), 1),), ((0, os.getegid(), 1),), squash=True)
PROGRAMS = [path for path in ("/bin/sh", "/bin/ls", "/usr/bin/env", "/usr/bin/sort") if os.path.exists(path)]


@pytest.fixture
def place() -> Iterator[str]:
    with scratch() as top:
        yield top


def made(*programs: str, epoch: int | None = None) -> bytes:
    out = io.BytesIO()
    host_layer(programs, out, epoch=epoch)
    return out.getvalue()


def unpack(data: bytes, root: str) -> None:
    os.mkdir(root)
    with directory(root) as fd:
        apply_layer(io.BytesIO(data), fd, ids=OWN, fresh=True)


def run(root: str, *command: str) -> str:
    """Run a command with ``root`` as its root directory, and a /proc, by which ld.so knows $ORIGIN."""
    mount("proc", f"{root}/proc", "proc", 0)
    try:
        done = subprocess.run(
            ["/usr/sbin/chroot", root, *command],
            capture_output=True,
            text=True,
            check=False,
            env={"PATH": "/bin:/usr/bin"},
        )
    finally:
        umount2(f"{root}/proc", MNT_DETACH)
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_root
@pytest.mark.skipif(not os.path.exists("/usr/sbin/chroot"), reason="chroot is not installed")
def test_the_programs_start_with_nothing_else(place: str) -> None:
    unpack(made(*PROGRAMS), f"{place}/root")
    assert run(f"{place}/root", "/bin/sh", "-c", "echo hello; ls /etc").split() == ["hello", "group", "passwd"]
    assert run(f"{place}/root", "/usr/bin/env", "sort", "/etc/passwd").startswith("root:")
    assert os.path.islink(f"{place}/root/bin") == os.path.islink("/bin")
    assert os.stat(f"{place}/root/tmp").st_mode & 0o7777 == 0o1777


def test_the_layer_is_reproducible(monkeypatch: pytest.MonkeyPatch) -> None:
    first = made(*PROGRAMS)
    assert hashlib.sha256(made(*PROGRAMS)).digest() == hashlib.sha256(first).digest()
    assert made(*reversed(PROGRAMS)) == first
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    assert made(*PROGRAMS) == made(*PROGRAMS, epoch=1_700_000_000) != first
    with tarfile.open(fileobj=io.BytesIO(made(*PROGRAMS))) as archive:
        members = archive.getmembers()
    assert {(one.uid, one.gid, one.mtime) for one in members} == {(0, 0, 1_700_000_000)}
    names = [one.name for one in members]
    assert names == sorted(names)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    with pytest.raises(UsageError, match="SOURCE_DATE_EPOCH"):
        made(*PROGRAMS)


def test_setuid_is_not_taken_along(tmp_path: Path) -> None:
    program = tmp_path / "program"
    shutil.copy("/bin/ls", program)
    program.chmod(0o4755)
    reader = Reader(io.BytesIO(made(str(program))))
    modes = {entry.name: entry.mode for entry in reader}
    assert modes[os.fsencode(str(program))[1:]] == 0o755


def compiler() -> str:
    found = shutil.which("gcc") or shutil.which("cc")
    if found is None:
        pytest.skip("no C compiler")
    return found


def build(tmp_path: Path, *options: str, output: str, source: str) -> str:
    file = tmp_path / f"{output.replace('/', '_')}.c"
    file.write_text(source)
    target = tmp_path / output
    target.parent.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [compiler(), str(file), "-o", str(target), *options], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"the compiler does not work here: {done.stderr[-200:]}")
    return str(target)


@needs_root
@pytest.mark.parametrize("tags", ["--enable-new-dtags", "--disable-new-dtags"])
def test_libraries_by_runpath_and_rpath(tmp_path: Path, place: str, tags: str) -> None:
    """DT_RUNPATH counts for the object that has it only; DT_RPATH also for what it loads."""
    build(
        tmp_path,
        "-shared",
        "-fPIC",
        "-Wl,-soname,libinner.so",
        output="lib/libinner.so",
        source="int inner(void){return 7;}",
    )
    own = ["-Wl,-rpath,$ORIGIN", f"-Wl,{tags}"] if tags == "--enable-new-dtags" else []
    build(
        tmp_path, "-shared", "-fPIC", f"-L{tmp_path}/lib", "-linner", *own, output="lib/libouter.so",
        source="int inner(void);int outer(void){return inner();}",
    )  # fmt: skip
    program = build(
        tmp_path, f"-L{tmp_path}/lib", "-louter", f"-Wl,-rpath-link,{tmp_path}/lib", "-Wl,-rpath,$ORIGIN/../lib",
        f"-Wl,{tags}", output="bin/program",
        source='#include <stdio.h>\nint outer(void);int main(void){printf("%d\\n", outer());return 0;}',
    )  # fmt: skip
    elf = read_elf(program)
    assert elf is not None
    assert (elf.runpath if own else elf.rpath) == ("$ORIGIN/../lib",)
    unpack(made(program), f"{place}/root")
    assert run(f"{place}/root", program) == "7\n"


@needs_root
def test_static_programs_bring_nothing(tmp_path: Path, place: str) -> None:
    program = build(
        tmp_path, "-static", output="static", source='#include <stdio.h>\nint main(void){puts("s");return 0;}'
    )
    unpack(made(program), f"{place}/root")
    assert run(f"{place}/root", program) == "s\n"
    assert not os.path.exists(f"{place}/root/lib64")


@needs_root
def test_scripts_bring_their_interpreter(tmp_path: Path, place: str) -> None:
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\necho from $0\n")
    script.chmod(0o755)
    env = tmp_path / "env-script"
    env.write_text("#!/usr/bin/env -S sh -e\necho by env\n")
    env.chmod(0o755)
    unpack(made(str(script), str(env)), f"{place}/root")
    assert run(f"{place}/root", str(script)) == f"from {script}\n"
    assert run(f"{place}/root", str(env)) == "by env\n"


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="program /no/such/program does not exist"):
        made("/no/such/program")
    with pytest.raises(UsageError, match="absolute path"):
        made("ls")
    script = tmp_path / "script"
    script.write_text("#!/no/such/interpreter -x\n")
    with pytest.raises(NotFound, match=r"/no/such/interpreter does not exist \(it is the interpreter of /"):
        made(str(script))
    script.write_text("#!/usr/bin/env no-such-program\n")
    with pytest.raises(NotFound, match="no-such-program"):
        made(str(script))
    with pytest.raises(NotFound):
        made("/etc/passwd/x")


def test_a_missing_library_is_named(tmp_path: Path) -> None:
    build(
        tmp_path,
        "-shared",
        "-fPIC",
        "-Wl,-soname,libgone.so.3",
        output="libgone.so",
        source="int gone(void){return 7;}",
    )
    program = build(
        tmp_path, f"-L{tmp_path}", "-lgone", output="program", source="int gone(void);int main(void){return gone();}"
    )
    (tmp_path / "libgone.so").unlink()
    with pytest.raises(Unsupported, match=r"its library libgone.so.3 is not on this machine"):
        made(program)


def test_the_cache_is_ldconfigs() -> None:
    cache = read_cache()
    ldconfig = shutil.which("ldconfig", path="/sbin:/usr/sbin")
    if not cache or ldconfig is None:
        pytest.skip("no loader cache here")
    printed = subprocess.run([ldconfig, "-p"], capture_output=True, text=True, check=True).stdout
    theirs = {
        (*tuple(line.strip().split(" ")[:1]), line.rpartition("=> ")[2])
        for line in printed.splitlines()[1:]
        if "=>" in line
    }
    ours = {(name, path) for name, paths in cache.items() for path in paths}
    assert ours == theirs


def test_what_ldd_says() -> None:
    ldd = shutil.which("ldd")
    if ldd is None:
        pytest.skip("ldd is not installed")
    finder = Finder()
    for program in PROGRAMS:
        elf = read_elf(program)
        if elf is None or not elf.interpreter:
            continue
        printed = subprocess.run([ldd, program], capture_output=True, text=True, check=True).stdout
        for name in elf.needed:
            (theirs,) = [
                line.split("=> ")[1].split(" ")[0]
                for line in printed.splitlines()
                if line.strip().startswith(name + " =>")
            ]
            assert os.path.samefile(finder.find(name, elf, os.path.dirname(program), []), theirs)


@given(st.binary(max_size=300), st.integers(0, 400))
def test_damaged_elf_is_a_format_error(junk: bytes, at: int) -> None:
    with scratch() as top:
        data = Path("/bin/ls").read_bytes()[:8192]
        with open(f"{top}/x", "wb") as stream:
            stream.write(data[:at] + junk + data[at + len(junk) :])
        said = ""
        try:
            read_elf(f"{top}/x")
        except FormatError as error:
            said = str(error)
        assert not said or "ELF" in said or "too large" in said


def test_a_huge_table_is_refused(tmp_path: Path) -> None:
    head = bytearray(b"\x7fELF\x02\x01\x01" + bytes(57))
    struct.pack_into("<H", head, 18, 62)
    struct.pack_into("<Q", head, 32, 64)
    struct.pack_into("<HH", head, 54, 56, 1)
    (tmp_path / "x").write_bytes(bytes(head) + struct.pack("<IIQQQQQQ", 2, 0, 0, 0, 0, 1 << 40, 0, 0))
    with pytest.raises(FormatError, match="too large"):
        read_elf(str(tmp_path / "x"))


# -- the writer -----------------------------------------------------------------------------------------------

NAMES = st.lists(
    st.binary(min_size=1, max_size=120).filter(lambda part: not set(part) & {0, 47}), min_size=1, max_size=4
).map(b"/".join)


@st.composite
def entry_and_data(draw: st.DrawFn) -> tuple[Entry, bytes]:
    entry = Entry()
    entry.name = draw(NAMES)
    entry.kind = draw(st.sampled_from([FILE, DIR, SYMLINK, HARDLINK, CHAR]))
    entry.mode = draw(st.integers(0, 0o7777))
    entry.uid, entry.gid = draw(st.integers(0, 2**31 - 1)), draw(st.integers(0, 2**31 - 1))
    entry.mtime = draw(st.integers(-(10**19), 10**20))
    if entry.kind in {SYMLINK, HARDLINK}:
        entry.link = draw(st.binary(min_size=1, max_size=300).filter(lambda text: 0 not in text))
    if entry.kind == CHAR:
        entry.device = (draw(st.integers(0, 4095)), draw(st.integers(0, 0o7777777)))
    keys = st.binary(min_size=1, max_size=20).filter(lambda key: not set(key) & {0, 61})
    entry.xattrs = draw(st.dictionaries(keys, st.binary(max_size=50), max_size=3)) or None
    return entry, draw(st.binary(max_size=1500)) if entry.kind == FILE else b""


@given(st.lists(entry_and_data(), max_size=5))
def test_what_is_written_is_read(items: list[tuple[Entry, bytes]]) -> None:
    out = io.BytesIO()
    writer = Writer(out)
    for entry, data in items:
        writer.add(entry, data)
    writer.close()
    reader = Reader(io.BytesIO(out.getvalue()))
    found = [(entry, b"".join(reader.chunks())) for entry in reader]
    assert len(found) == len(items)
    for (got, content), (want, data) in zip(found, items, strict=True):
        assert got.name.rstrip(b"/") == want.name.rstrip(b"/")
        for field in ("kind", "mode", "uid", "gid", "mtime", "link", "device", "xattrs"):
            assert getattr(got, field) == getattr(want, field), field
        assert content == data
    with tarfile.open(fileobj=io.BytesIO(out.getvalue()), errors="surrogateescape") as archive:
        assert len(archive.getmembers()) == len(items)
