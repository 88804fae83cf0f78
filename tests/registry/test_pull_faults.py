"""L-16, of a pull: each system call of it fails once, as the kernel or a network file system may let it.

The pull succeeds all the same, or says in one sentence what failed; what is in the store is whole, and the next
pull succeeds. Some sixty calls here; ``KNARR_TEST_FULL=1`` tries every one with every error.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
from fakeregistry import FakeRegistry, Sample

from knarr.content.check import check
from knarr.content.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator

FULL = bool(os.environ.get("KNARR_TEST_FULL"))
CALLS = (
    "openat,openat2,read,pread64,write,pwrite64,fsync,fdatasync,syncfs,rename,renameat,renameat2,mkdir,unlink,unlinkat,"
    "newfstatat,fstat,statfs,ftruncate,fchmod,flock,getdents64,lseek,socket,connect,sendto,recvfrom,poll"
)
# Of a signal, of a resource that is short for a moment, of a network file system, of a disk.
ERRORS = ("EINTR", "EAGAIN", "ESTALE", "EIO")

# Pulls once, so that all is loaded; then each line of its input is a store to pull into, by a child that waits for us to
# have strace attached to it.
WORKER = """
import json, os, signal, sys, tempfile, time, traceback
from knarr.base.errors import KnarrError
from knarr.content.store import Store
from knarr.image.platform import parse_platform
from knarr.image.pull import copy
from knarr.registry.connections import Policy
from knarr.registry.source import open_image

quick = Policy(connect=5, read=2, headers=2, backoff=0.01, longest_wait=0.05)

def pull(path):
    source = open_image(sys.argv[1], "lib/thing", "v1", policy=quick)
    try:
        copy(source, Store.open(path), ["x"], platform=parse_platform("linux/amd64"))
    finally:
        source.close()

with tempfile.TemporaryDirectory() as folder:
    pull(folder + "/store")
try:
    pull("/proc/nowhere")  # what an error needs
except KnarrError as error:
    str(error)
print("ready", flush=True)
for line in sys.stdin:
    folder = line.strip()
    flag, result = folder + ".go", folder + ".said"
    child = os.fork()
    if not child:
        said = "TRACEBACK none"
        try:
            signal.alarm(60)
            while not os.access(flag, os.F_OK):  # no call of those that fail
                time.sleep(0.002)
            pull(folder)
            said = ""
        except KnarrError as error:
            said = str(error)
        except BaseException as error:
            trace = traceback.extract_tb(error.__traceback__)
            said = "TRACEBACK " + repr(error) + " at " + "; ".join(f"{one.name} {one.line}" for one in trace[-3:])
        finally:
            for _ in range(3):  # one of these calls may be the one that fails
                try:
                    with open(result, "w") as out:
                        out.write(json.dumps(said))
                    break
                except OSError:
                    pass
            os._exit(0)
    print(child, flush=True)
    os.waitpid(child, 0)
    try:
        with open(result) as file:
            print(file.read(), flush=True)
    except OSError:
        print(json.dumps("TRACEBACK it ended, or did not end in a minute"), flush=True)
    for name in (flag, result):
        if os.path.exists(name):
            os.unlink(name)
"""


class Outcome(NamedTuple):
    """What a pull under strace said ("" when it succeeded), and the calls that strace saw."""

    said: str
    log: str


class Pulls:
    """A worker whose children pull, each watched by a strace of its own."""

    def __init__(self, host: str, folder: Path) -> None:
        self.folder = folder
        self.worker = subprocess.Popen(
            [sys.executable, "-c", WORKER, host], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.line() == "ready"

    def line(self) -> str:
        assert self.worker.stdout is not None
        return self.worker.stdout.readline().strip()

    def tell(self, text: str) -> None:
        assert self.worker.stdin is not None
        self.worker.stdin.write(text + "\n")
        self.worker.stdin.flush()

    def run(self, store: Store, *options: str) -> Outcome:
        self.tell(store.path)
        child = self.line()
        log = self.folder / "log"
        log.write_text("")
        command = ["strace", "-f", "-p", child, "-o", str(log), "-e", f"trace={CALLS}", *options]
        strace = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert strace.stderr is not None
        told = strace.stderr.readline()
        if "attached" not in told:
            strace.kill()
            strace.wait()
            Path(f"{store.path}.go").touch()
            self.line()
            pytest.skip(f"strace may not attach here: {told.strip()}")
        Path(f"{store.path}.go").touch()
        said = json.loads(self.line())
        strace.stderr.close()
        strace.wait(30)
        return Outcome(said, log.read_text())

    def close(self) -> None:
        assert self.worker.stdin is not None
        assert self.worker.stdout is not None
        self.worker.stdin.close()
        self.worker.stdout.close()
        self.worker.wait(30)


@pytest.fixture
def pulls(fake: FakeRegistry, tmp_path: Path) -> Iterator[Pulls]:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    fake.add("v1", Sample(300_000))
    made = Pulls(fake.host, tmp_path)
    yield made
    made.close()


def test_l16_each_call_fails_once(pulls: Pulls, tmp_path: Path) -> None:
    calls = Counter(re.findall(r"^\d+ +(\w+)\(", pulls.run(Store.open(str(tmp_path / "first"))).log, re.MULTILINE))
    every = [(name, number, error) for name in calls for number in range(1, calls[name] + 1) for error in ERRORS]
    # Each call's name with each error at least once.
    chosen = every
    if not FULL:
        chance = random.Random(time.strftime("%j"))
        chosen = [(name, chance.randint(1, calls[name]), error) for name in calls for error in ERRORS]
        chosen = chance.sample(chosen, min(60, len(chosen)))
    outcomes: Counter[str] = Counter()
    wrong = []
    for name, number, error in chosen:
        place = tmp_path / "store"
        store = Store.open(str(place))
        outcome = pulls.run(store, "-e", f"inject={name}:error={error}:when={number}")
        case = f"{name} {number} {error}: {outcome.said}"
        if "INJECTED" not in outcome.log:
            outcomes["not reached"] += 1  # threads go now this way, now that
        if outcome.said.startswith("TRACEBACK"):
            wrong.append(case)
        assert outcome.said.isprintable(), case
        assert check(store) == [], case
        if not outcome.said:
            assert list(store.tags()) == ["x"], case
        outcomes["refused" if outcome.said else "pulled"] += 1
        assert pulls.run(store).said == "", case
        assert list(store.tags()) == ["x"], case
        assert check(store) == [], case
        store.gc()
        assert os.listdir(f"{store.path}/.tmp") == [], case
        shutil.rmtree(place)
    print(f"L-16: {len(chosen)} of {len(every)} calls: {dict(outcomes)}")
    assert wrong == [], "\n".join(wrong)
    assert outcomes["pulled"]
    assert outcomes["refused"]
