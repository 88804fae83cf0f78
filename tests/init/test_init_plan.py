"""The init's decoder and the program itself: the table, the wire format, hostile bytes, how it is built."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from initlaunch import ABORT, ERROR, FORMAT, SOURCES, SYNC, Launcher, Packet, sealed

from knarr.plan import ops
from knarr.plan.ops import KINDS, MAX_SLOTS, Op, encode

HEADER = (SOURCES / "ops.h").read_text()
FIRST = Op("sync", [5])


# -- the table ----------------------------------------------------------------------------------------------------


def test_the_operations_agree() -> None:
    found = {}
    for name, number, numbers, strings in re.findall(r"X\((\w+), (\d+), ([^,]+), ([^)]+)\)", HEADER):
        if name != "name":

            def names(text: str) -> tuple[int, bool]:
                return int(text.split("|", maxsplit=1)[0]), "MORE" in text

            found[name] = (int(number), names(numbers), names(strings))

    def shape(names: tuple[str, ...]) -> tuple[int, bool]:
        more = bool(names) and names[-1].endswith("*")
        return len(names) - more, more

    assert found == {name: (number, shape(ints), shape(strs)) for name, (number, ints, strs) in KINDS.items()}
    assert len({number for number, _, _ in found.values()}) == len(found)


def test_the_flags_agree() -> None:
    flags = dict(re.findall(r"^\s+([A-Z_]+) = (\d+),", HEADER, re.MULTILINE))
    assert {"MAX_SLOTS", "RECURSIVE", "KEEP_CAPS", "PIVOT_MOVE"} <= set(flags)
    assert flags == {name: str(getattr(ops, name)) for name in flags}
    assert f"#define NO_SLOT 0x{ops.NO_SLOT:X}u" in HEADER


def test_every_operation_is_documented() -> None:
    text = (SOURCES.parents[2] / "docs" / "init.md").read_text()
    table = text[text.index("| operation | does |") :]
    documented = set()
    for line in table.splitlines():
        if line.startswith("| `"):
            documented.update(re.findall(r"`(\w+)`", line.split("|")[1]))
    assert documented == set(KINDS)


# -- the wire format ----------------------------------------------------------------------------------------------


def legal(data: bytes) -> bool:
    """The format as docs/init.md has it, once more and in another language."""
    by_number = {number: (ints, strs) for number, ints, strs in KINDS.values()}
    seccomp = KINDS["seccomp"][0]
    if len(data) < 24 or data[:8] != b"KNARRPL1":
        return False
    total, count, slots, zero = struct.unpack_from("<IIII", data, 8)
    if total != len(data) or slots > MAX_SLOTS or zero:
        return False
    at = 24
    for _ in range(count):
        if at + 16 > total:
            return False
        kind, numbers, strings, size = struct.unpack_from("<IIII", data, at)
        if kind not in by_number or size < 16 or size % 8 or at + size > total:
            return False
        for names, have in zip(by_number[kind], (numbers, strings), strict=True):
            more = bool(names) and names[-1].endswith("*")
            if have < len(names) - 1 if more else have != len(names):
                return False
        used = 16 + 8 * numbers
        if used > size:
            return False
        for _ in range(strings):
            if used + 16 > size:
                return False
            (length,) = struct.unpack_from("<Q", data, at + used)
            padded = length + 8 - length % 8
            if used + 8 + padded > size:
                return False
            text = data[at + used + 8 :][:padded]
            if any(text[length:]) or (kind != seccomp and b"\0" in text[:length]):
                return False
            used += 8 + padded
        if used != size:
            return False
        at += size
    return bool(at == total)


def judge(launcher: Launcher, data: bytes) -> bool:
    """Whether the init accepts a Plan that begins with ``sync``; nothing after that is done."""
    run = launcher.start(data)
    try:
        packet = run.receive()
        assert packet is not None, f"it ended without a word, status {run.wait().code}"
        if packet.type == ERROR and packet.index == FORMAT:
            assert packet.value == errno.EPROTO
            assert run.receive() is None
            assert run.wait().code == 1
            return False
        run.control.send(struct.pack("<II", ABORT, 0))
        while run.receive() is not None:
            pass
        assert run.wait().code in {0, 1}
        return True
    finally:
        run.close()
        launcher.runs.remove(run)


def op_bytes(kind: int, numbers: int, strings: int, size: int, body: bytes = b"") -> bytes:
    return struct.pack("<IIII", kind, numbers, strings, size) + body


def whole(body: bytes, count: int, *, magic: bytes = b"KNARRPL1", slots: int = 0, zero: int = 0, add: int = 0) -> bytes:
    return magic + struct.pack("<IIII", 24 + len(body) + add, count, slots, zero) + body


def string(text: bytes, length: int | None = None, pad: bytes | None = None) -> bytes:
    return (
        struct.pack("<Q", len(text) if length is None else length)
        + text
        + (bytes(8 - len(text) % 8) if pad is None else pad)
    )


KEYRING, UMASK, SECCOMP, EXEC = (KINDS[name][0] for name in ("keyring", "umask", "seccomp", "exec"))
MALFORMED = {
    "nothing but a part of the header": b"KNARRPL1" + bytes(15),
    "another magic": whole(b"", 0, magic=b"KNARRPL2"),
    "a size too big": whole(b"", 0, add=8),
    "a size too small": whole(bytes(8), 0, add=-8),
    "trailing bytes": whole(bytes(8), 0),
    "a reserved word": whole(b"", 0, zero=1),
    "too many slots": whole(b"", 0, slots=MAX_SLOTS + 1),
    "more operations than there are": whole(op_bytes(UMASK, 1, 0, 24, bytes(8)), 2),
    "fewer operations than there are": whole(op_bytes(UMASK, 1, 0, 24, bytes(8)), 0),
    "an unknown operation": whole(op_bytes(9, 1, 0, 24, bytes(8)), 1),
    "operation 0": whole(op_bytes(0, 0, 0, 16), 1),
    "too few numbers": whole(op_bytes(UMASK, 0, 0, 16), 1),
    "too many numbers": whole(op_bytes(UMASK, 2, 0, 32, bytes(16)), 1),
    "a string too many": whole(op_bytes(UMASK, 1, 1, 40, bytes(24)), 1),
    "numbers past the operation": whole(op_bytes(UMASK, 1, 0, 16), 1),
    "a count that overflows": whole(op_bytes(KINDS["user"][0], 0x20000003, 0, 40, bytes(24)), 1),
    "an operation past the end": whole(op_bytes(UMASK, 1, 0, 32, bytes(8)), 1),
    "an operation of no size": whole(op_bytes(UMASK, 1, 0, 0, bytes(8)), 1),
    "an operation smaller than its header": whole(op_bytes(UMASK, 1, 0, 8, bytes(8)), 1),
    "an odd size": whole(op_bytes(UMASK, 1, 0, 23, bytes(7)), 1),
    "slack in an operation": whole(op_bytes(UMASK, 1, 0, 32, bytes(16)), 1),
    "a string past its operation": whole(op_bytes(KEYRING, 0, 1, 32, string(b"", 8)), 1),
    "a length that overflows": whole(op_bytes(KEYRING, 0, 1, 32, string(b"", 0xFFFFFFFFFFFFFFF8)), 1),
    "a length beyond 32 bits": whole(op_bytes(KEYRING, 0, 1, 32, string(b"", 1 << 32)), 1),
    "a string without its end": whole(op_bytes(KEYRING, 0, 1, 32, string(b"12345678", pad=b"")), 1),
    "padding that is not zero": whole(op_bytes(KEYRING, 0, 1, 32, string(b"abc", pad=b"\0\0\0\0x")), 1),
    "a NUL in a text": whole(op_bytes(KEYRING, 0, 1, 32, string(b"a\0b")), 1),
    "more strings than there are": whole(op_bytes(EXEC, 1, 2, 40, bytes(8) + string(b"")), 1),
    "a huge count of strings": whole(op_bytes(EXEC, 1, 0xFFFFFFFF, 40, bytes(8) + string(b"")), 1),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_plans(launcher: Launcher, name: str) -> None:
    assert not legal(MALFORMED[name])
    launcher.run(MALFORMED[name]).refused(FORMAT, errno.EPROTO)


def test_legal_plans(launcher: Launcher) -> None:
    text = whole(op_bytes(KEYRING, 0, 1, 32, string(b"1234567")), 1)
    assert legal(text)
    assert legal(whole(op_bytes(SECCOMP, 1, 1, 40, bytes(8) + string(b"a\0b")), 1))
    for data in (whole(b"", 0), encode([Op("umask", [0])] * 5000, 0)):
        assert legal(data)
        launcher.run(data).succeeded()
    launcher.run([Op("seccomp", [0], [b"\0" * 7])]).refused(0, errno.EINVAL)


def test_the_last_operation_is_not_done_when_a_later_one_is_malformed(launcher: Launcher, tmp_path: Path) -> None:
    good = encode([Op("host_mkdir", [0o755, 0, 0], [str(tmp_path / "made")])], 0)[24:]
    launcher.run(whole(good + op_bytes(9, 0, 0, 16), 2)).refused(FORMAT, errno.EPROTO)
    assert not (tmp_path / "made").exists()


def test_more_slots_than_descriptors(launcher: Launcher) -> None:
    data = encode([FIRST, Op("setns", [900, 0])], 1000)
    run = launcher.start(data).stop(5)
    run.go()
    run.finish().refused(1, errno.EBADF)


@pytest.mark.parametrize("seals", [0, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW])
def test_a_plan_that_could_still_change(launcher: Launcher, seals: int) -> None:
    memfd = sealed(encode([], 0), seals)
    launcher.start(b"", memfd=memfd).finish().refused(FORMAT, errno.EPERM)
    os.close(memfd)


def test_a_plan_that_is_no_memfd(launcher: Launcher, tmp_path: Path) -> None:
    (tmp_path / "plan").write_bytes(encode([], 0))
    for path, flags in ((tmp_path / "plan", os.O_RDONLY), (tmp_path, os.O_RDONLY), (Path("/dev/null"), os.O_RDWR)):
        fd = os.open(path, flags)
        launcher.start(b"", memfd=fd).finish().refused(FORMAT, errno.EPERM)
        os.close(fd)
    launcher.run(b"").refused(FORMAT, errno.EPROTO)


# -- hostile bytes ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def harmless(init_binary: Path) -> Launcher:
    """A launcher without rights: what a damaged Plan may ask for must not happen to the machine."""
    setpriv = shutil.which("setpriv")
    if os.geteuid() != 0:
        return Launcher(init_binary)
    if setpriv is None:
        pytest.skip("setpriv is not installed: damaged plans are not tried as root")
    return Launcher(init_binary, [setpriv, "--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all"])


def example() -> bytes:
    plan = [
        FIRST,
        Op("keyring", [], ["name"]),
        Op("mount", [1, 2, 3, 4], ["tmpfs", "source", "/target", "mode=755", "size=1m"]),
        Op("user", [1, 2, 0, 3, 4, 5]),
        Op("seccomp", [0], [bytes(range(48))]),
        Op("hook", [100, 1], ["/hook", "argv", "ENV=1"]),
        Op("exec", [2], ["a", "b", "", "PATH=/bin"]),
    ]
    return encode(plan, 0)


def test_truncated_plans(harmless: Launcher) -> None:
    data = example()
    rng = random.Random(1)
    for size in sorted(rng.sample(range(len(data)), 40)):
        cut = data[:size]
        if size >= 12:  # the header agrees, or nothing behind it is looked at
            cut = cut[:8] + struct.pack("<I", size) + cut[12:]
        assert judge(harmless, cut) == legal(cut)


def test_flipped_bits_and_odd_words(harmless: Launcher) -> None:
    data = example()
    rng = random.Random(2)
    accepted = 0
    for turn in range(250):
        bad = bytearray(data)
        for _ in range(rng.choice((1, 1, 2, 4))):
            if turn % 2:
                position = rng.randrange(48, len(bad))  # behind the first sync
                bad[position] ^= 1 << rng.randrange(8)
            else:
                position = rng.randrange(16, len(bad) // 4) * 4
                struct.pack_into("<I", bad, position, rng.choice((0, 1, 7, 8, 16, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)))
        verdict = judge(harmless, bytes(bad))
        assert verdict == legal(bytes(bad)), bytes(bad)
        accepted += verdict
    assert 20 < accepted < 230  # the test looks at both sides


_T = TypeVar("_T")
_TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)


@st.composite
def operations(draw: st.DrawFn) -> Op:
    kind = draw(st.sampled_from(sorted(KINDS)))
    _, ints, strs = KINDS[kind]

    def some(names: tuple[str, ...], values: st.SearchStrategy[_T]) -> list[_T]:
        more = bool(names) and names[-1].endswith("*")
        return draw(st.lists(values, min_size=len(names) - more, max_size=len(names) + 4 * more))

    return Op(kind, some(ints, st.integers(0, 2**64 - 1)), some(strs, _TEXT))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(plan=st.lists(operations(), max_size=8), data=st.data())
def test_any_plan_is_judged_alike(harmless: Launcher, plan: list[Op], data: st.DataObject) -> None:
    encoded = encode([FIRST, *plan], 0)
    assert legal(encoded)
    assert judge(harmless, encoded)
    position = data.draw(st.integers(48, len(encoded)))
    changed = encoded[:position] + data.draw(st.binary(min_size=1, max_size=8)) + encoded[position + 1 :]
    changed = changed[:8] + struct.pack("<I", len(changed)) + changed[12:]
    assert judge(harmless, changed) == legal(changed)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(plan=st.lists(operations(), min_size=1, max_size=6))
def test_any_operation_ends_without_a_crash(harmless: Launcher, plan: list[Op]) -> None:
    """Random arguments, really carried out, without rights: an ERROR or an end, never a signal or a hang."""
    plan = [op for op in plan if op.kind not in {"pdeathsig", "rlimit", "dumpable"}]
    # In a directory nobody can write to: an ordinary user's own would fill with what host_mkdir makes.
    plan.insert(0, Op("host_chdir", [], ["/proc"]))
    run = harmless.start(encode(plan, 0))
    try:
        while (packet := run.receive()) is not None:
            if packet.type == SYNC:
                run.go(b"state")
            assert isinstance(packet, Packet)
        assert run.wait().code in {0, 1} or run.code >= 0
    finally:
        run.close()
        harmless.runs.remove(run)


def test_the_decoder_under_sanitizers() -> None:
    tool = SOURCES.parents[2] / "tools" / "fuzz_init"
    if not tool.exists():
        pytest.skip("tools/fuzz_init is not here")
    done = subprocess.run([sys.executable, str(tool), "3"], check=False, capture_output=True, text=True)
    if done.returncode == 77:
        pytest.skip(f"no sanitizers: {done.stdout.splitlines()[-1]}")
    assert done.returncode == 0, done.stdout + done.stderr
    runs = re.search(r"(\d+) runs", done.stdout + done.stderr)
    assert runs is not None
    assert int(runs[1]) > 1000


# -- the program --------------------------------------------------------------------------------------------------


def program_headers(path: Path) -> list[tuple[int, int, int, int, int, int, int, int]]:
    data = path.read_bytes()
    (offset,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    return [struct.unpack_from("<IIQQQQQQ", data, offset + number * size) for number in range(count)]


def check_program(path: Path) -> None:
    """Static, no interpreter, position-independent, nothing both writable and executable, small."""
    data = path.read_bytes()
    assert struct.unpack_from("<H", data, 16)[0] == 3  # ET_DYN
    headers = program_headers(path)
    kinds = {header[0] for header in headers}
    assert 3 not in kinds  # PT_INTERP
    loads = [header for header in headers if header[0] == 1]
    assert all(header[1] & 3 != 3 for header in loads)
    stack = next(header for header in headers if header[0] == 0x6474E551)
    assert stack[1] & 1 == 0
    assert sum(header[5] for header in loads) < 48 * 1024
    # address space: the buffers of guest mode, of which a container's init never touches a page
    assert sum(header[6] for header in loads if header[1] & 2) < 10 << 20


def test_the_program(init_binary: Path) -> None:
    check_program(init_binary)


def test_no_libc_and_no_undefined_names(init_binary: Path) -> None:
    readelf = shutil.which("readelf")
    if readelf is None:
        pytest.skip("readelf is not installed")
    dynamic = subprocess.run([readelf, "-dW", str(init_binary)], check=True, capture_output=True, text=True).stdout
    assert "NEEDED" not in dynamic
    symbols = subprocess.run(
        [readelf, "--dyn-syms", "-W", str(init_binary)], check=True, capture_output=True, text=True
    )
    assert "knarr" not in symbols.stdout


def test_gcc_leaves_nothing_to_relocate(init_binary: Path) -> None:
    """Every address to correct at the start would cost a page of every waiting container."""
    readelf = shutil.which("readelf")
    if readelf is None or "clang" in os.environ.get("CC", ""):
        pytest.skip("readelf is not installed, or the compiler is not gcc")
    found = subprocess.run([readelf, "-rW", str(init_binary)], check=True, capture_output=True, text=True).stdout
    assert "There are no relocations" in found
