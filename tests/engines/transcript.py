"""What an engine said and did, step by step: recorded with two runtimes below it, and compared."""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import pty
import re
import select
import signal
import subprocess
import termios
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from engine import Engine

    View = Callable[[str], str]
    """Takes from a text what can be compared."""

_TIME = r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?( ?(Z|[+-]\d\d:?\d\d)( [A-Z]{3,4})?)?( m=\+[\d.]+)?"
PATTERNS = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\b[0-9a-f]{63,64}\b", "<id>"),
        (r"\b[0-9a-f]{12}\b", "<id>"),
        (_TIME, "<time>"),
        (r"(Less than a second|About an? (minute|hour)|\d+ (seconds?|minutes?))( ago)?", "<age>"),
    )
)
# Fields of inspect documents that say when, or which process, and nothing else.
WHEN_AND_WHO = frozenset(
    ("Pid", "ConmonPid", "PidFile", "SandboxID", "EndpointID", "NetworkID", "Created", "StartedAt", "FinishedAt", "At")
)


class Broken(AssertionError):
    """The engine did not do what the script says it does, whatever the runtime."""


class Step:
    """One step of a script: what was asked, what came."""

    def __init__(self, label: str, code: int | None, out: str, err: str) -> None:
        self.label, self.code, self.out, self.err = label, code, out, err

    def __str__(self) -> str:
        lines = [f"$ {self.label}"]
        lines += [f"  out  {line}" for line in self.out.splitlines()]
        lines += [f"  err  {line}" for line in self.err.splitlines()]
        return "\n".join((*lines, f"  code {self.code}")) if self.code is not None else "\n".join(lines)


class Recorder:
    """Runs an engine's command line and keeps what it says. ``command`` comes before the words of every step."""

    def __init__(self, engine: Engine, command: list[str], environment: dict[str, str]) -> None:
        self.box = engine.box
        self.runtime, self.is_runc = engine.runtime, engine.is_runc
        self.folder, self.cgroup = str(engine.box.folder), engine.box.cgroup
        self._hidden = [(self.folder, "<folder>"), (self.cgroup, "<cgroup>"), (engine.runtime, "<runtime>")]
        self.command = command
        self.environment = environment
        self.steps: list[Step] = []
        self._begun: list[Background | Talk] = []

    def __call__(
        self,
        *words: str,
        code: int = 0,
        out: str | None = None,
        view: View | None = None,
        own: tuple[str, ...] = (),
        stdin: str = "",
        timeout: float = 60,
    ) -> str:
        """Do a step and record it; returns its output as it came.

        The step must end with ``code`` and, if that is given, say ``out``. ``view`` takes from the output what two runs have
        in common. ``own``: a part of the message is the runtime's own sentence; instead of the text it is recorded
        that each of these words is in it.
        """
        done = self.quiet(*words, stdin=stdin, timeout=timeout)
        self.expect(words, done.returncode, code, done.stdout, done.stderr)
        if out is not None and done.stdout != out:
            raise Broken(f"{' '.join(words)}\nsaid {done.stdout!r}\nnot  {out!r}\n{done.stderr}")
        if own:  # some engines pass the runtime's message on in the program's output
            said = done.stdout + done.stderr
            for word in own:
                if word not in said:
                    raise Broken(f"{' '.join(words)}\nsaid {said!r}\nwithout {word!r}")
            self.record(words, code, "", f"<a sentence with {', '.join(map(repr, own))}>")
        else:
            self.record(words, code, view(done.stdout) if view else done.stdout, done.stderr)
        return done.stdout

    def apart(self, reason: str, *words: str, runc: tuple[int, str], ours: tuple[int, str]) -> None:
        """A step in which ours is meant to differ, for ``reason``; of each, exit code and a part of what is said."""
        done = self.quiet(*words)
        code, part = runc if self.is_runc else ours
        said = done.stdout + done.stderr
        if done.returncode != code or part not in said:
            raise Broken(f"{' '.join(words)}\nended with {done.returncode}, not {code}, or said no {part!r}: {said}")
        self.note(f"apart: {' '.join(words)}", reason)

    def quiet(self, *words: str, stdin: str = "", timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Do something that is not recorded."""
        started = self.start(words)
        out, err = self.finish(started, words, stdin, timeout)
        return subprocess.CompletedProcess(list(words), started.returncode, out, err)

    def start(self, words: Iterable[str]) -> subprocess.Popen[str]:
        """Start a client in a process group of its own: nsenter waits for it, and signals are for both."""
        return subprocess.Popen(
            [*self.command, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="backslashreplace",
            env=self.environment,
            process_group=0,
        )

    def finish(
        self, started: subprocess.Popen[str], words: Iterable[str], stdin: str, timeout: float
    ) -> tuple[str, str]:
        """Wait for a client's end; what it said. Raises Broken when it does not come."""
        try:
            return started.communicate(stdin, timeout)
        except subprocess.TimeoutExpired:
            os.killpg(started.pid, signal.SIGKILL)
            out, err = started.communicate()
            raise Broken(f"{' '.join(words)}: did not end within {timeout} s: {out}{err}") from None

    def record(self, words: Iterable[str], code: int | None, out: str = "", err: str = "") -> None:
        label = " ".join(words)
        self.steps.append(Step(*(self.plain(label), code), self.plain(out), self.plain(err)))

    def hide(self, text: str, replacement: str) -> None:
        """Have ``text`` replaced in all that is recorded from now on."""
        self._hidden.append((text, replacement))

    def note(self, what: str, value: object) -> None:
        """Record a fact that the script found out."""
        self.record((what,), None, str(value))

    def document(self, *words: str, leave: Iterable[str] = ()) -> Any:
        """Record a JSON document, a line per value, without what differs from run to run; returns the document."""
        done = self.quiet(*words)
        self.expect(words, done.returncode, 0, done.stdout, done.stderr)
        document = json.loads(done.stdout)
        out = "\n".join(sorted(flat(document, frozenset(leave))))
        self.record(words, done.returncode, out, done.stderr)
        return document

    def wait_for(self, what: str, *words: str, until: Callable[[str], bool], patience: float = 30) -> str:
        """Ask until the answer is right; what was waited for is recorded, the asking is not."""
        end = time.monotonic() + patience
        while True:
            done = self.quiet(*words)
            if done.returncode == 0 and until(done.stdout):
                self.note("waited for", what)
                return done.stdout
            if time.monotonic() > end:
                raise Broken(
                    f"waited in vain for: {what}\n{' '.join(words)}: {done.returncode}\n{done.stdout}{done.stderr}"
                )
            time.sleep(0.05)

    def background(self, *words: str) -> Background:
        begun = Background(self, words)
        self._begun.append(begun)
        return begun

    def terminal(self, *words: str, size: tuple[int, int] = (30, 100)) -> Talk:
        begun = Talk(self, words, size)
        self._begun.append(begun)
        return begun

    def close(self) -> None:
        """End what a broken script left running."""
        for each in self._begun:
            each.close()

    def expect(self, words: Iterable[str], code: int, wanted: int, out: str, err: str) -> None:
        if code != wanted:
            raise Broken(f"{' '.join(words)}\nended with {code}, not {wanted}\nout: {out}\nerr: {err}")

    def plain(self, text: str) -> str:
        """The text without names and numbers that differ from run to run."""
        for own, replacement in self._hidden:
            text = text.replace(own, replacement)
        for pattern, replacement in PATTERNS:
            text = pattern.sub(replacement, text)
        return text


class Background:
    """A step that goes on while others are done."""

    def __init__(self, recorder: Recorder, words: tuple[str, ...]) -> None:
        self.recorder, self.words = recorder, words
        self.process = recorder.start(words)

    def say(self, text: str) -> None:
        """Give it something to read, with more to come."""
        assert self.process.stdin is not None
        self.process.stdin.write(text)
        self.process.stdin.flush()

    def stop(self) -> None:
        """For a step without an end of its own (events): interrupt it."""
        os.killpg(self.process.pid, signal.SIGINT)

    def end(self, code: int | None = 0, stdin: str = "", view: View | None = None, timeout: float = 60) -> str:
        """Wait for its end and record it; ``code`` None for one that was stopped."""
        out, err = self.recorder.finish(self.process, self.words, stdin, timeout)
        if code is not None:
            self.recorder.expect(self.words, self.process.returncode, code, out, err)
        self.recorder.record(self.words, code, view(out) if view else out, err)
        return out

    def close(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.communicate()


class Talk:
    """A step at a terminal of its own, as a person at a keyboard."""

    def __init__(self, recorder: Recorder, words: tuple[str, ...], size: tuple[int, int]) -> None:
        self.recorder, self.words = recorder, words
        self.master, slave = pty.openpty()
        termios.tcsetwinsize(self.master, size)
        self.seen = ""
        self.all = ""
        try:
            self.process = subprocess.Popen(
                ["setsid", "--ctty", "--wait", *recorder.command, *words],
                stdin=slave,
                stdout=slave,
                stderr=slave,
                env=recorder.environment,
            )
        finally:
            os.close(slave)

    def until(self, text: str, patience: float = 30) -> None:
        """Read until ``text`` has come."""
        end = time.monotonic() + patience
        while text not in self.seen:
            if not self._read(end - time.monotonic()):
                raise Broken(f"{' '.join(self.words)}: waited for {text!r}, the terminal has {self.all!r}")
        self.seen = self.seen.partition(text)[2]

    def send(self, text: str) -> None:
        os.write(self.master, text.encode())

    def ask(self, prompt: str, line: str) -> None:
        """Wait for a prompt, type a line."""
        self.until(prompt)
        self.send(f"{line}\r")

    def resize(self, rows: int, columns: int) -> None:
        termios.tcsetwinsize(self.master, (rows, columns))

    def end(self, code: int = 0, patience: float = 30, view: View | None = None) -> str:
        """Read to the end and record all that was on the screen."""
        end = time.monotonic() + patience
        while self._read(end - time.monotonic()):
            pass
        try:
            found = self.process.wait(max(end - time.monotonic(), 1))
        except subprocess.TimeoutExpired:
            raise Broken(f"{' '.join(self.words)}: did not end; the terminal has {self.all!r}") from None
        self.recorder.expect(self.words, found, code, self.all, "")
        text = view(self.all) if view else self.all
        self.recorder.record(self.words, code, "\n".join(map(repr, text.splitlines())))
        return self.all

    def close(self) -> None:
        if self.master >= 0:
            os.close(self.master)  # what still runs there gets SIGHUP
            self.master = -1
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def _read(self, patience: float) -> bool:
        if patience <= 0 or not select.select([self.master], [], [], patience)[0]:
            return False
        data = b""
        with contextlib.suppress(OSError):  # EIO: the other side was closed
            data = os.read(self.master, 65536)
        text = data.decode(errors="backslashreplace")
        self.seen += text
        self.all += text
        return bool(data)


def flat(value: Any, leave: frozenset[str] = frozenset(), path: str = "") -> Iterable[str]:
    """Every value of a document with its path; of what only says when or who, whether it is there."""
    if isinstance(value, dict):
        for name, item in value.items():
            if name in leave:
                continue
            if name in WHEN_AND_WHO and not isinstance(item, dict):
                yield f"{path}/{name} {'<some>' if item and item != '0001-01-01T00:00:00Z' else '<none>'}"
            else:
                yield from flat(item, leave, f"{path}/{name}")
        if not value:
            yield f"{path} {{}}"
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from flat(item, leave, f"{path}/{number}")
        if not value:
            yield f"{path} []"
    else:
        yield f"{path} {json.dumps(value)}"


def differences(theirs: list[Step], ours: list[Step]) -> str:
    """What differs between two transcripts, as a diff; empty when they say the same."""
    left = "\n".join(map(str, theirs)).splitlines()
    right = "\n".join(map(str, ours)).splitlines()
    return "\n".join(difflib.unified_diff(left, right, "runc", "knarr-runtime", n=4, lineterm=""))
