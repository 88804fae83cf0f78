"""Fuzz what reads strangers' bytes: tar and PAX, stacks of layers and their EROFS index, documents, references, challenges.

    make fuzz                              a minute for each target, as many at a time as there are processors
    make fuzz ARGS='--seconds 600 tar'     longer, one target
    make fuzz ARGS='--input FILE tar'      one input again
    make fuzz ARGS='--merge'               what was found of new paths, into the corpora here

Anything but an error of ours ends the run; the input is printed and left in ``.cache/fuzz``, to become a file of ``corpus``,
which every test run reads. With atheris (PyPI; wheels for some Pythons on x86_64) the inputs follow what they reach in our
code; without it they are those of the corpora changed at random. The corpora are made by this program and hold nothing else.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import importlib
import io
import os
import random
import subprocess
import sys
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

try:
    atheris: Any = importlib.import_module("atheris")
except ImportError:
    atheris = None

with (
    atheris.instrument_imports(include=["knarr"])
    if atheris is not None and "--child" in sys.argv
    else contextlib.nullcontext()
):
    from knarr.base import strictjson
    from knarr.base.errors import FormatError, KnarrError
    from knarr.image.reference import parse_reference
    from knarr.layer import erofs, paxheader
    from knarr.layer.model import Model
    from knarr.layer.tarball import Reader
    from knarr.registry.challenge import choose, parse_challenges
    from knarr.spec import image_validate, validate

CACHE = Path(__file__).parents[2] / ".cache" / "fuzz"
CORPUS = Path(__file__).parent / "corpus"
LONGEST_KEPT = 6 << 10
"""Bytes of a file in the corpora: they are to stay small."""
MOST = 24 << 10
"""Bytes of an input."""


# -- targets: bytes in, nothing out, and no exception but ours -----------------------------------------------------------


def tar(data: bytes) -> None:
    """Every header of a tar, and its contents."""
    reader = Reader(io.BytesIO(data))
    for _ in reader:
        pass
    reader.drain()


def pax(data: bytes) -> None:
    """The records of an extended header, for one entry and for all."""

    def fail(why: str, entry: bytes = b"") -> FormatError:
        return FormatError("tar", repr(entry), why)

    with contextlib.suppress(KnarrError):
        paxheader.check_global(data, fail)
    paxheader.parse(data, fail)


def layers(data: bytes) -> None:
    """Up to three layers applied in memory, whiteouts and links; then the index an image is mounted by."""
    model = Model(limit=10_000)
    parts = data.split(b"\1LAYER\1")[:3]
    for part in parts:
        model.apply(io.BytesIO(part), hashed=True)
    model.flat()
    out = io.BytesIO()
    erofs.write(model, [len(part) for part in parts], out)
    if len(out.getvalue()) % (1 << erofs.BLOCK_BITS):
        raise AssertionError("an index that does not end with a block")


def documents(data: bytes) -> None:
    """Manifest, index, config, layout, descriptor; what is accepted as a manifest can be made OCI's."""
    parsers: tuple[Callable[[bytes], object], ...] = (
        image_validate.parse_index,
        image_validate.parse_config,
        image_validate.parse_layout,
        image_validate.parse_descriptor,
    )
    for parse in parsers:
        with contextlib.suppress(KnarrError):
            parse(data)
    image_validate.to_oci(image_validate.parse_manifest(data))


def config(data: bytes) -> None:
    """A runtime's config.json."""
    validate.config_findings(strictjson.parse(data, "config.json", limit=MOST))


def reference(data: bytes) -> None:
    """A reference, which reads the same when it is written again."""
    found = parse_reference(data.decode("utf-8", "surrogateescape"))
    if found.transport == "docker" and parse_reference(found.name) != found:
        raise AssertionError(f"{found.name!r} is not read as it was written")


def challenge(data: bytes) -> None:
    """WWW-Authenticate headers."""
    choose(parse_challenges(data.decode("latin-1").split("\n")))


def _tar(*entries: tarfile.TarInfo, form: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as made:
        for entry in entries:
            made.addfile(entry, io.BytesIO(bytes(entry.size)))
    return out.getvalue()


def _entry(
    name: str, kind: bytes = tarfile.REGTYPE, size: int = 0, link: str = "", pax: dict[str, str] | None = None
) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.size, entry.linkname, entry.pax_headers = kind, size, link, pax or {}
    return entry


def _tars() -> list[bytes]:
    xattr = {"SCHILY.xattr.user.a": "b", "mtime": "1.5"}
    sparse = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "s", "GNU.sparse.realsize": "9999"}
    every = [
        _entry("d", tarfile.DIRTYPE),
        _entry("d/f", size=700, pax=xattr),
        _entry("d/h", tarfile.LNKTYPE, link="d/f"),
        _entry("d/s", tarfile.SYMTYPE, link="../x"),
        _entry("d/c", tarfile.CHRTYPE),
        _entry("d/.wh.f"),
        _entry("e/.wh..wh..opq"),
        _entry("n" * 300),
    ]
    map_ = b"1\n0\n512\n" + bytes(504)
    old = _tar(_entry("s", size=1024, pax=sparse))
    return [
        _tar(*every),
        _tar(*every, form=tarfile.GNU_FORMAT),
        old[:-2048] + map_ + old[-1536:],
        old,
        _tar(*every[:5]) + b"\1LAYER\1" + _tar(*every[5:]),
    ]


_DIGEST = b"sha256:" + b"0" * 64
_MANIFEST = (
    b'{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":'
    b'"application/vnd.oci.image.config.v1+json","digest":"' + _DIGEST + b'","size":2},"layers":[{"mediaType":'
    b'"application/vnd.oci.image.layer.v1.tar+gzip","digest":"' + _DIGEST + b'","size":3,"urls":["https://a"],'
    b'"annotations":{"a":"b"}}],"subject":{"mediaType":"a/b","digest":"' + _DIGEST + b'","size":0}}'
)
_CONFIG = (
    b'{"architecture":"amd64","os":"linux","created":"2026-01-02T03:04:05Z","config":{"Env":["A=1"],"Cmd":["a"],'
    b'"ExposedPorts":{"80/tcp":{}},"Volumes":{"/a":{}},"User":"1:2","WorkingDir":"/"},"rootfs":{"type":"layers",'
    b'"diff_ids":["' + _DIGEST + b'"]},"history":[{"empty_layer":true}]}'
)
_RUNTIME = (
    b'{"ociVersion":"1.2.0","process":{"args":["a"],"cwd":"/","user":{"uid":0,"gid":0},"rlimits":[{"type":'
    b'"RLIMIT_NOFILE","soft":1,"hard":2}]},"root":{"path":"r"},"mounts":[{"destination":"/p","type":"proc",'
    b'"source":"p","options":["ro"]}],"linux":{"namespaces":[{"type":"mount"}],"resources":{"memory":{"limit":1}},'
    b'"seccomp":{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["a"],"action":"SCMP_ACT_ERRNO"}]}}}'
)
TARGETS: dict[str, tuple[Callable[[bytes], None], list[bytes]]] = {
    "tar": (tar, _tars()),
    "pax": (
        pax,
        [
            b"30 mtime=1350244992.023960108\n11 path=a/b\n24 SCHILY.xattr.user.a=\x00\n",
            b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n25 GNU.sparse.map=0,1,512,9\n23 GNU.sparse.size=9999\n",
            b"13 comment=x\n8 uid=1\n8 gid=\n20 hdrcharset=BINARY\n",
        ],
    ),
    "layers": (layers, _tars()),
    "documents": (
        documents,
        [_MANIFEST, _CONFIG, b'{"schemaVersion":2,"manifests":[]}', b'{"imageLayoutVersion":"1.0.0"}'],
    ),
    "config": (config, [_RUNTIME]),
    "reference": (
        reference,
        [
            b"a",
            b"docker://[::1]:5000/a/b__c:t@" + _DIGEST,
            b"oci:dir:tag",
            b"docker-archive:f:n:t",
            b"host:",
            b"a.b/c@" + _DIGEST,
        ],
    ),
    "challenge": (
        challenge,
        [b'Bearer realm="https://a/t",service="s",scope="a:b:pull"\nBasic realm=x, Digest a="\\""'],
    ),
}


# -- running -------------------------------------------------------------------------------------------------------------


def once(name: str, data: bytes) -> None:
    """Give a target one input; raises what is not ours."""
    with contextlib.suppress(KnarrError):
        TARGETS[name][0](data)


def mutated(seeds: list[bytes], chance: random.Random) -> bytes:
    """One of some inputs, changed in a few places."""
    data = bytearray(chance.choice(seeds))
    for _ in range(chance.randint(1, 8)):
        at = chance.randrange(len(data) + 1)
        what = chance.randrange(4)
        if what == 0:
            data[at : at + 1] = chance.randbytes(1)
        elif what == 1:
            del data[at : at + chance.randint(1, 64)]
        elif what == 2:
            data[at:at] = data[at : at + chance.randint(1, 600)]
        else:
            other = chance.choice(seeds)
            start = chance.randrange(len(other))
            data[at:at] = other[start : start + chance.randint(1, 600)]
    return bytes(data[:MOST])


def seeds(name: str) -> list[bytes]:
    """What a target begins with: the seeds above and its corpus."""
    return [*TARGETS[name][1], *(path.read_bytes() for path in corpus(name))]


def corpus(name: str) -> list[Path]:
    """The files of a target's corpus."""
    return sorted((CORPUS / name).iterdir())


def run_plain(name: str, seconds: float) -> None:
    """Without atheris: inputs changed at random; the last one is kept when it fails."""
    chance, known = random.Random(), seeds(name)
    count, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        data = mutated(known, chance)
        try:
            once(name, data)
        except BaseException:
            CACHE.mkdir(parents=True, exist_ok=True)
            (CACHE / f"{name}.crash").write_bytes(data)
            raise
        count += 1
    print(f"number_of_executed_units: {count}", file=sys.stderr)


def run_guided(name: str, seconds: float) -> None:
    """With atheris; ends this process."""
    found = CACHE / name
    found.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(TARGETS[name][1]):
        (found / f"seed{number}").write_bytes(seed)
    options = [f"-max_total_time={seconds:.0f}", "-timeout=60", "-rss_limit_mb=1500", f"-max_len={MOST}"]
    options += [f"-artifact_prefix={CACHE}/{name}.", "-print_final_stats=1", "-verbosity=0"]
    options += [str(found), str(CORPUS / name)]  # what is new goes into the first
    atheris.Setup([sys.argv[0], *options], lambda data: once(name, data))
    atheris.Fuzz()


def reached(name: str, data: bytes) -> set[tuple[str, int, int]]:
    """The steps from line to line that an input makes in our code."""
    steps: set[tuple[str, int, int]] = set()

    def watch(frame: FrameType, event: str, _: object) -> Any:
        if event == "call":
            if "/knarr/" not in frame.f_code.co_filename:
                return None
            before = 0

            def line(frame: FrameType, event: str, _: object) -> Any:
                nonlocal before
                if event == "line":
                    steps.add((frame.f_code.co_filename, before, frame.f_lineno))
                    before = frame.f_lineno
                return line

            return line
        return None

    sys.settrace(watch)
    try:
        once(name, data)
    finally:
        sys.settrace(None)
    return steps


def merge(name: str) -> None:
    """Write a target's corpus anew: of the seeds, the corpus and the cache the smallest inputs that reach what all do."""
    found = {data for data in seeds(name) if len(data) <= LONGEST_KEPT}
    if (CACHE / name).is_dir():
        found |= {path.read_bytes() for path in (CACHE / name).iterdir() if path.stat().st_size <= LONGEST_KEPT}
    kept: dict[str, bytes] = {}
    known: set[tuple[str, int, int]] = set()
    for data in sorted(found, key=lambda data: (len(data), data)):
        steps = reached(name, data)
        if steps - known:
            known |= steps
            kept[sha256(data).hexdigest()[:16]] = data
    for path in corpus(name):
        path.unlink()
    for title, data in kept.items():
        (CORPUS / name / title).write_bytes(data)
    print(f"{name}: {len(kept)} of {len(found)} inputs, {sum(map(len, kept.values()))} bytes")


def told(name: str, done: subprocess.CompletedProcess[str]) -> str:
    """What became of one target, for people; all that is needed to do it again."""
    runs = [line.split()[-1] for line in done.stderr.splitlines() if "number_of_executed_units" in line]
    how = "" if atheris is not None else " at random"
    if not done.returncode:
        return f"{name}: {runs[0] if runs else '?'} inputs{how}, nothing found"
    inputs = [f"{path}, in base64: {base64.b64encode(path.read_bytes()).decode()}" for path in CACHE.glob(f"{name}.*")]
    return "\n".join([f"{name}: FOUND", done.stderr[-4000:], *inputs])


def main() -> int:
    parser = argparse.ArgumentParser(description="fuzz the parsers")
    parser.add_argument("targets", nargs="*", help=f"default: all of {', '.join(TARGETS)}")
    parser.add_argument("--seconds", type=float, default=60, help="for each target")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="targets at a time")
    parser.add_argument("--input", type=Path, help="give the target this file, and nothing else")
    parser.add_argument("--merge", action="store_true", help="grow the corpora by what the runs here have found")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if wrong := [name for name in options.targets if name not in TARGETS]:
        parser.error(f"there is no target {wrong[0]}")
    if options.merge:
        for name in options.targets or TARGETS:
            merge(name)
        return 0
    if options.input is not None:
        for name in options.targets or parser.error("--input wants a target"):
            once(name, options.input.read_bytes())
        return 0
    if options.child:
        if atheris is None:
            run_plain(options.targets[0], options.seconds)
        else:
            run_guided(options.targets[0], options.seconds)
        return 0

    def child(name: str) -> int:
        for old in CACHE.glob(f"{name}.*"):
            old.unlink()
        # A process each: libFuzzer ends it, and uses one processor.
        words = [sys.executable, __file__, "--child", "--seconds", str(options.seconds), name]
        done = subprocess.run(words, check=False, stderr=subprocess.PIPE, text=True, errors="replace")
        print(told(name, done), flush=True)
        return done.returncode

    with ThreadPoolExecutor(max_workers=max(1, options.jobs)) as pool:
        codes = list(pool.map(child, options.targets or [*TARGETS]))
    return 1 if any(codes) else 0


if __name__ == "__main__":
    sys.exit(main())
