"""Fuzz what reads strangers' bytes: tar and PAX, stacks of layers and their EROFS index, documents, references, challenges.

    make fuzz                              a minute for each target
    make fuzz ARGS='--seconds 600 tar'     longer, one target
    make fuzz ARGS='--input FILE tar'      one input again

Anything but an error of ours ends the run; the input is left in ``.cache/fuzz``, to become a test. With atheris (PyPI; wheels
for some Pythons on x86_64) the inputs follow what they reach in our code; without it they are seeds changed at random.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import os
import random
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

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
    from knarr.base.errors import KnarrError
    from knarr.image.reference import parse_reference
    from knarr.layer import erofs
    from knarr.layer.model import Model
    from knarr.layer.tarball import Reader
    from knarr.registry.challenge import choose, parse_challenges
    from knarr.spec import image_validate, validate

CACHE = Path(__file__).parents[2] / ".cache" / "fuzz"
MOST = 16 << 10
"""Bytes of an input."""


# -- targets: bytes in, nothing out, and no exception but ours -----------------------------------------------------------


def tar(data: bytes) -> None:
    """Every header of a tar, and its contents."""
    reader = Reader(io.BytesIO(data))
    for _ in reader:
        pass
    reader.drain()


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


def run_plain(name: str, seconds: float) -> int:
    """Without atheris: seeds changed at random. Returns the number of inputs; the last one is kept when it fails."""
    chance = random.Random()
    count, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        data = mutated(TARGETS[name][1], chance)
        try:
            once(name, data)
        except BaseException:
            CACHE.mkdir(parents=True, exist_ok=True)
            (CACHE / f"{name}.crash").write_bytes(data)
            raise
        count += 1
    return count


def run_guided(name: str, seconds: float) -> None:
    """With atheris; ends this process."""
    corpus = CACHE / name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(TARGETS[name][1]):
        (corpus / f"seed{number}").write_bytes(seed)
    options = [f"-max_total_time={seconds:.0f}", "-timeout=20", "-rss_limit_mb=1500", f"-max_len={MOST}"]
    options += [f"-artifact_prefix={CACHE}/{name}.", "-print_final_stats=1", "-verbosity=0"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], lambda data: once(name, data))
    atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(description="fuzz the parsers")
    parser.add_argument("targets", nargs="*", help=f"default: all of {', '.join(TARGETS)}")
    parser.add_argument("--seconds", type=float, default=60, help="for each target")
    parser.add_argument("--input", type=Path, help="give the target this file, and nothing else")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if wrong := [name for name in options.targets if name not in TARGETS]:
        parser.error(f"there is no target {wrong[0]}")
    if options.input is not None:
        for name in options.targets or parser.error("--input wants a target"):
            once(name, options.input.read_bytes())
        return 0
    if options.child:
        run_guided(options.targets[0], options.seconds)
    failed = []
    for name in options.targets or [*TARGETS]:
        if atheris is None:
            print(f"{name}: {run_plain(name, options.seconds)} inputs at random, nothing found", flush=True)
            continue
        # libFuzzer ends the process.
        words = [sys.executable, __file__, "--child", "--seconds", str(options.seconds), name]
        done = subprocess.run(words, check=False, stderr=subprocess.PIPE, text=True, env={**os.environ})
        runs = [line.split()[-1] for line in done.stderr.splitlines() if "number_of_executed_units" in line]
        print(
            f"{name}: {runs[0] if runs else '?'} inputs, {'nothing found' if not done.returncode else 'FOUND'}",
            flush=True,
        )
        if done.returncode:
            failed.append(name)
            print(done.stderr[-4000:], file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
