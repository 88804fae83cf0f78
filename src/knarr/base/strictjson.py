"""The strict JSON reader that can say where and why (cold).

``fastjson`` comes here when its C scanner is not content. Slow and exact: it collects everything wrong
with a well-formed text, each with its JSON pointer (RFC 6901), and stops at the first syntax error, told by
line and column. Grammar: RFC 8259; the refusals beyond it: RFC 7493 and ``fastjson``.
"""

from __future__ import annotations

from knarr.base.errors import SpecError, SpecFinding
from knarr.base.fastjson import DEPTH, INT_MAX, INT_MIN, pointer_token

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MOST_FINDINGS = 50
_SPACE = " \t\n\r"
_DIGITS = "0123456789"
_HEX = "0123456789abcdefABCDEF"
_ESCAPES = {'"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_WORDS = {"true": True, "false": False, "null": None}
_BAD_WORDS = ("NaN", "Infinity", "-Infinity")


class _Stop(Exception):
    """Reading cannot go on; ``at`` is an index into the text, or -1 when the finding has a pointer."""

    def __init__(self, at: int, why: str) -> None:
        super().__init__(why)
        self.at = at
        self.why = why


class _Reader:
    """One reading of one text: where we are, the path to it, and what was found."""

    __slots__ = ("findings", "path", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.path: list[str] = []
        self.findings: list[SpecFinding] = []

    def pointer(self) -> str:
        return "".join(map(pointer_token, self.path))

    def found(self, why: str) -> None:
        if len(self.findings) >= MOST_FINDINGS:
            raise _Stop(-1, f"more than {MOST_FINDINGS} findings")
        self.findings.append(SpecFinding(self.pointer(), why))

    def space(self, at: int) -> int:
        text, end = self.text, len(self.text)
        while at < end and text[at] in _SPACE:
            at += 1
        return at

    def value(self, at: int) -> tuple[Any, int]:
        """Read the value that starts at ``at`` (no space before it)."""
        text = self.text
        first = text[at : at + 1]
        if first == '"':
            return self.string(at)
        if first in ("{", "["):
            if len(self.path) >= DEPTH:
                raise _Stop(at, f"nested deeper than {DEPTH} levels")
            return self.object(at) if first == "{" else self.array(at)
        for word in _BAD_WORDS:
            if text.startswith(word, at):
                self.found(f"{word} is not a JSON number")
                return None, at + len(word)
        if first == "-" or (first and first in _DIGITS):
            return self.number(at)
        for word, value in _WORDS.items():
            if text.startswith(word, at):
                return value, at + len(word)
        raise _Stop(at, "a value is missing" if first in ("", ",", "}", "]", ":") else f"unexpected {first!r}")

    def object(self, at: int) -> tuple[dict[str, Any], int]:
        text = self.text
        made: dict[str, Any] = {}
        at = self.space(at + 1)
        if text[at : at + 1] == "}":
            return made, at + 1
        while True:
            if text[at : at + 1] != '"':
                raise _Stop(at, 'a name in double quotes or "}" is missing' if not made else "a name is missing")
            name, after = self.string(at)
            self.path.append(name)
            if name in made:
                self.found("the name occurs twice in the object")
            at = self.space(after)
            if text[at : at + 1] != ":":
                raise _Stop(at, '":" is missing after the name')
            made[name], at = self.value(self.space(at + 1))
            self.path.pop()
            at = self.space(at)
            mark = text[at : at + 1]
            if mark == "}":
                return made, at + 1
            if mark != ",":
                raise _Stop(at, '"," or "}" is missing')
            at = self.space(at + 1)

    def array(self, at: int) -> tuple[list[Any], int]:
        text = self.text
        made: list[Any] = []
        at = self.space(at + 1)
        if text[at : at + 1] == "]":
            return made, at + 1
        while True:
            self.path.append(str(len(made)))
            item, at = self.value(at)
            self.path.pop()
            made.append(item)
            at = self.space(at)
            mark = text[at : at + 1]
            if mark == "]":
                return made, at + 1
            if mark != ",":
                raise _Stop(at, '"," or "]" is missing')
            at = self.space(at + 1)

    def string(self, at: int) -> tuple[str, int]:
        """Read the string whose opening quote is at ``at``; judge its code points."""
        text = self.text
        start, at = at, at + 1
        parts: list[str] = []
        quote = slash = -1
        while True:
            if quote < at:
                quote = text.find('"', at)
            if quote < 0:
                raise _Stop(start, "the string does not end")
            if slash < at:
                slash = text.find("\\", at, quote)
            end = quote if slash < 0 else slash
            chunk = text[at:end]
            if not chunk.isprintable():
                for index, char in enumerate(chunk):
                    if char < " ":
                        raise _Stop(at + index, f"control character {ord(char):#04x} in a string is not escaped")
            parts.append(chunk)
            if end == quote:
                break
            mark = text[end + 1 : end + 2]
            if mark == "u":
                code = self.code_unit(end)
                at = end + 6
                if 0xD800 <= code < 0xDC00 and text.startswith("\\u", at):
                    low = self.code_unit(at)
                    if 0xDC00 <= low < 0xE000:
                        code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00)
                        at += 6
                parts.append(chr(code))
            elif mark in _ESCAPES:
                parts.append(_ESCAPES[mark])
                at = end + 2
            else:
                raise _Stop(end, f"unknown escape \\{mark}")
            slash = -1
        made = "".join(parts)
        if len(parts) > 1:
            if "\0" in made:
                self.found("a string holds U+0000")
            if any("\ud800" <= char <= "\udfff" for char in made):
                self.found("a string holds a lone surrogate")
                made = "".join("\ufffd" if "\ud800" <= char <= "\udfff" else char for char in made)
        return made, quote + 1

    def code_unit(self, at: int) -> int:
        """Value of the escape at ``at``: backslash, u, four digits."""
        digits = self.text[at + 2 : at + 6]
        if len(digits) != 4 or any(digit not in _HEX for digit in digits):
            raise _Stop(at, "\\u needs four hexadecimal digits")
        return int(digits, 16)

    def number(self, at: int) -> tuple[int | float, int]:
        text, start, whole = self.text, at, True
        if text[at] == "-":
            at += 1
        if text[at : at + 1] == "0":
            at += 1
        else:
            at = self.digits(at)
        if text[at : at + 1] == ".":
            whole, at = False, self.digits(at + 1)
        if text[at : at + 1] in ("e", "E"):
            whole, at = False, self.digits(at + 2 if text[at + 1 : at + 2] in ("+", "-") else at + 1)
        shown = text[start:at] if at - start <= 40 else f"{text[start : start + 37]}…"
        if whole:
            if at - start > 20 or not INT_MIN <= int(text[start:at]) <= INT_MAX:
                self.found(f"{shown} fits neither int64 nor uint64")
                return 0, at
            return int(text[start:at]), at
        value = float(text[start:at])
        if value - value != 0.0:
            self.found(f"{shown} is too large for a number")
            return 0.0, at
        return value, at

    def digits(self, at: int) -> int:
        text, start, end = self.text, at, len(self.text)
        while at < end and text[at] in _DIGITS:
            at += 1
        if at == start:
            raise _Stop(at, "a digit is missing")
        return at


def _decode(data: bytes, document: str, limit: int) -> str:
    def refuse(why: str) -> SpecError:
        return SpecError(document, [SpecFinding("", why)])

    if len(data) > limit:
        raise refuse(f"has {len(data)} bytes, at most {limit} are read")
    if not data:
        raise refuse("is empty")
    if data.startswith(b"\xef\xbb\xbf"):
        raise refuse("starts with a byte order mark")
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise refuse("is UTF-16 or UTF-32, a JSON document is UTF-8")
    try:
        return str(data, "utf-8")
    except UnicodeDecodeError as error:
        line, column = _place(str(data[: error.start], "utf-8"), -1)
        byte = data[error.start]
        raise refuse(f"line {line} column {column}: byte {byte:#04x} is not valid UTF-8") from None


def _place(text: str, at: int) -> tuple[int, int]:
    """Line and column (both from 1, in characters) of index ``at``; -1 means the end."""
    before = text if at < 0 else text[:at]
    return before.count("\n") + 1, len(before) - before.rfind("\n")


def parse(data: bytes, document: str, *, limit: int) -> Any:
    """Read one strict I-JSON document; raises SpecError with all findings. See ``fastjson.loads``."""
    text = _decode(data, document, limit)
    reader = _Reader(text)
    value: Any = None
    try:
        value, at = reader.value(reader.space(0))
        at = reader.space(at)
        if at < len(text):
            raise _Stop(at, "more data after the document")
    except _Stop as stop:
        if stop.at < 0:
            reader.findings.append(SpecFinding(reader.pointer(), stop.why))
        else:
            line, column = _place(text, stop.at)
            reader.findings.append(SpecFinding("", f"line {line} column {column}: {stop.why}"))
    if reader.findings:
        raise SpecError(document, reader.findings)
    return value


def undecodable(value: Any) -> str:
    """Return the JSON pointer of the first string in ``value`` that UTF-8 cannot encode."""
    todo: list[tuple[str, Any]] = [("", value)]
    while todo:
        pointer, item = todo.pop()
        if isinstance(item, str):
            if not _encodable(item):
                return pointer
        elif isinstance(item, dict):
            for name in item:
                if not _encodable(name):
                    return pointer
            todo.extend((pointer + pointer_token(name), child) for name, child in reversed(item.items()))
        elif isinstance(item, (list, tuple)):
            todo.extend((f"{pointer}/{index}", child) for index, child in reversed(list(enumerate(item))))
    return ""


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
