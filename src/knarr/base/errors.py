"""The one exception tree (hot).

Facts are attributes; ``str()`` makes the sentence: lower case, what, on what, why, and a hint where
there is a fix. Raise where the facts are known; wrap only to add a fact; never log and raise. Each
face (exit codes, runc's JSON log, later ttrpc and HTTP) maps these classes to its own codes in one
table, and a test demands an entry for every class.
"""

from __future__ import annotations

import posix


class KnarrError(Exception):
    """Everything knarr raises on purpose. ``hint`` is the fix, when there is one."""

    hint: str = ""

    def __init__(self, message: str = "", *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def sentence(self) -> str:
        """The sentence without its hint."""
        return self.message

    def __str__(self) -> str:
        return f"{self.sentence()} ({self.hint})" if self.hint else self.sentence()


class UsageError(KnarrError):
    """The command line or a call's arguments do not fit: unknown flag, missing operand, bad value."""


class SpecFinding:
    """One thing wrong with a document: where (a JSON pointer, RFC 6901) and why."""

    __slots__ = ("pointer", "why")

    def __init__(self, pointer: str, why: str) -> None:
        self.pointer = pointer
        self.why = why

    def __repr__(self) -> str:
        return f"SpecFinding({self.pointer!r}, {self.why!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SpecFinding) and (self.pointer, self.why) == (other.pointer, other.why)

    def __hash__(self) -> int:
        return hash((self.pointer, self.why))

    def __str__(self) -> str:
        return f"{self.pointer}: {self.why}" if self.pointer else self.why


class SpecError(KnarrError):
    """A document (config.json, manifest, …) is not what its specification asks for; all findings at once."""

    def __init__(self, document: str, findings: list[SpecFinding], *, hint: str = "") -> None:
        super().__init__(hint=hint)
        self.document = document
        self.findings = findings

    def sentence(self) -> str:
        return f"{self.document} " + "; ".join(str(finding) for finding in self.findings)


class InvalidReference(KnarrError):
    """An image reference cannot be read; ``rule`` says which rule it breaks."""

    def __init__(self, text: str, rule: str, *, hint: str = "") -> None:
        super().__init__(hint=hint)
        self.text = text
        self.rule = rule

    def sentence(self) -> str:
        return f"invalid reference {self.text!r}: {self.rule}"


class InvalidDigest(KnarrError):
    """A digest does not follow the grammar of image-spec descriptor.md, or names no usable algorithm."""

    def __init__(self, text: str, rule: str) -> None:
        super().__init__()
        self.text = text
        self.rule = rule

    def sentence(self) -> str:
        shown = self.text if len(self.text) <= 160 else self.text[:157] + "…"
        return f"invalid digest {shown!r}: {self.rule}"


class InvalidId(KnarrError):
    """A container id or name cannot be used as a file name."""

    def __init__(self, kind: str, text: str, rule: str) -> None:
        super().__init__()
        self.kind = kind
        self.text = text
        self.rule = rule

    def sentence(self) -> str:
        return f"invalid {self.kind} {self.text!r}: {self.rule}"


class NotFound(KnarrError):
    """Nothing by that name: a container, image, tag, blob, bundle, …; ``among`` says what there is."""

    def __init__(self, kind: str, name: str, *, among: str = "", hint: str = "") -> None:
        super().__init__(hint=hint)
        self.kind = kind
        self.name = name
        self.among = among

    def sentence(self) -> str:
        text = f"{self.kind} {self.name} does not exist"
        return f"{text}; there is {self.among}" if self.among else text


class Exists(KnarrError):
    """The name is taken."""

    def __init__(self, kind: str, name: str, *, hint: str = "") -> None:
        super().__init__(hint=hint)
        self.kind = kind
        self.name = name

    def sentence(self) -> str:
        return f"{self.kind} {self.name} already exists"


class InUse(KnarrError):
    """The thing cannot go while something else needs it."""

    def __init__(self, kind: str, name: str, by: str, *, hint: str = "") -> None:
        super().__init__(hint=hint)
        self.kind = kind
        self.name = name
        self.by = by

    def sentence(self) -> str:
        return f"{self.kind} {self.name} is in use by {self.by}"


class WrongStatus(KnarrError):
    """The operation does not fit the container's status (runtime-spec, Operations)."""

    def __init__(self, id: str, operation: str, status: str, *, hint: str = "") -> None:
        super().__init__(hint=hint)
        self.id = id
        self.operation = operation
        self.status = status

    def sentence(self) -> str:
        return f"cannot {self.operation} container {self.id}: it is {self.status}"


class DigestMismatch(KnarrError):
    """Bytes do not have the digest that was promised."""

    def __init__(self, what: str, want: str, got: str) -> None:
        super().__init__()
        self.what = what
        self.want = want
        self.got = got

    def sentence(self) -> str:
        return f"{self.what} has digest {self.got}, expected {self.want}"


class SizeMismatch(KnarrError):
    """There are fewer or more bytes than promised (sizes in bytes; ``got`` may be a lower bound)."""

    def __init__(self, what: str, want: int, got: int, *, more: bool = False) -> None:
        super().__init__()
        self.what = what
        self.want = want
        self.got = got
        self.more = more

    def sentence(self) -> str:
        least = "more than " if self.more else ""
        return f"{self.what} has {least}{self.got} bytes, expected {self.want}"


class SignatureError(KnarrError):
    """An image has no signature that counts: none at all, or ``reasons``, one for each that was looked at."""

    def __init__(self, what: str, reasons: list[str], *, hint: str = "") -> None:
        super().__init__(hint=hint)
        self.what = what
        self.reasons = tuple(reasons)

    def sentence(self) -> str:
        return f"{self.what} has no signature that counts: {'; '.join(self.reasons) or 'there is none'}"


class FormatError(KnarrError):
    """A byte stream is not what it claims: tar, gzip, zstd, archive; ``where`` is an offset or an entry."""

    def __init__(self, what: str, where: str, why: str) -> None:
        super().__init__()
        self.what = what
        self.where = where
        self.why = why

    def sentence(self) -> str:
        return f"{self.what}: {self.where}: {self.why}" if self.where else f"{self.what}: {self.why}"


class Unsupported(KnarrError):
    """The kernel, the host or knarr lacks what was asked for."""

    def __init__(self, feature: str, why: str, *, hint: str = "", pointer: str = "") -> None:
        super().__init__(hint=hint)
        self.feature = feature
        self.why = why
        self.pointer = pointer

    def sentence(self) -> str:
        where = f"config.json {self.pointer}: " if self.pointer else ""
        return f"{where}{self.feature} is not supported: {self.why}"


class SafetyViolation(KnarrError):
    """An escape, a race or a swapped mount was seen: stop, never retry."""

    def __init__(self, what: str, path: str, why: str) -> None:
        super().__init__()
        self.what = what
        self.path = path
        self.why = why

    def sentence(self) -> str:
        return f"refused: {self.what} {self.path}: {self.why}"


class KernelError(KnarrError, OSError):
    """A system call failed; names the call and its operand."""

    def __init__(self, call: str, operand: str, number: int, *, hint: str = "") -> None:
        KnarrError.__init__(self, hint=hint)
        self.call = call
        self.operand = operand
        self.errno = number
        self.strerror = posix.strerror(number)

    def sentence(self) -> str:
        on = f" {self.operand}" if self.operand else ""
        return f"{self.call}{on}: {posix.strerror(self.errno or 0).lower()}"

    __str__ = KnarrError.__str__


class FileError(KnarrError):
    """A file or directory of the user's cannot be read or written; made from an OSError at the edge."""

    def __init__(self, doing: str, path: str, number: int, *, hint: str = "") -> None:
        super().__init__(hint=hint)
        self.doing = doing
        self.path = path
        self.number = number

    def sentence(self) -> str:
        return f"cannot {self.doing} {self.path}: {posix.strerror(self.number).lower()}"


class HookError(KnarrError):
    """A hook failed: exit status, signal, time-out or could not be started (runtime-spec, POSIX-platform Hooks)."""

    def __init__(self, pointer: str, path: str, why: str) -> None:
        super().__init__()
        self.pointer = pointer
        self.path = path
        self.why = why

    def sentence(self) -> str:
        return f"config.json {self.pointer}: hook {self.path} {self.why}"


class InitError(KnarrError):
    """knarr-init could not do an operation of the Plan; ``pointer`` is the config.json field that asked for it."""

    def __init__(self, pointer: str, doing: str, number: int, *, why: str = "", hint: str = "") -> None:
        super().__init__(hint=hint)
        self.pointer = pointer
        self.doing = doing
        self.number = number
        self.why = why

    def sentence(self) -> str:
        where = f"config.json {self.pointer}: " if self.pointer else ""
        return f"{where}{self.doing}: {self.why or posix.strerror(self.number).lower()}"


class CommandNotFound(InitError):
    """The program to run does not exist in the container (exit code 127)."""


class CommandNotExecutable(InitError):
    """The program exists but cannot be executed (exit code 126): no x bit, wrong architecture, noexec and the like."""


class RegistryError(KnarrError):
    """A registry refused or failed; ``url`` never carries credentials; ``status`` is the HTTP status, 0 for none."""

    def __init__(self, method: str, url: str, status: int, why: str, *, hint: str = "") -> None:
        super().__init__(hint=hint)
        self.method = method
        self.url = url
        self.status = status
        self.why = why

    def sentence(self) -> str:
        code = f"{self.status} " if self.status else ""
        return f"{self.method} {self.url}: {code}{self.why}"


class AuthError(RegistryError):
    """The registry wants credentials we do not have, or refuses those we have."""


class Interrupted(KnarrError):
    """The user or the system asked us to stop (Ctrl-C, SIGTERM); everything half-done was undone."""


class TimedOut(KnarrError):
    """A time limit of the caller's passed; ``stdout`` and ``stderr`` are what a program had written by then."""

    def __init__(self, what: str, seconds: float, *, stdout: bytes = b"", stderr: bytes = b"") -> None:
        super().__init__()
        self.what = what
        self.seconds = seconds
        self.stdout = stdout
        self.stderr = stderr

    def sentence(self) -> str:
        return f"{self.what} did not end within {self.seconds:g} seconds and was killed"
