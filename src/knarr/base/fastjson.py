"""Strict JSON on CPython's own C scanner and encoder, without ``import json`` (hot).

``import json`` costs 9 ms, this file 0.5 ms. Reading is strict I-JSON (RFC 7493) and a little more:
UTF-8 without a byte order mark, no duplicate names, no NaN or infinity, no trailing data, no lone
surrogates, no U+0000, integers that fit int64 or uint64, at most 100 levels, a bounded size. Anything
the fast reader does not like goes to ``strictjson``, which says where and why (and is the reader when
this Python's ``_json`` lacks the pieces).
"""

from __future__ import annotations

from knarr.base.errors import SpecError, SpecFinding

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

try:
    import _json

    _make_scanner: Any = _json.make_scanner
    _make_encoder: Any = _json.make_encoder
    _quote: Any = _json.encode_basestring
except (ImportError, AttributeError):  # another Python than CPython, or a build without the accelerator
    _make_scanner = _make_encoder = None

    def _slow_quote(text: str) -> str:
        from json.encoder import encode_basestring  # cold: only without _json

        return encode_basestring(text)

    _quote = _slow_quote


LIMIT = 16 << 20
"""Most bytes a document may have when the caller names no other limit: 16 MiB."""

DEPTH = 100
"""Most levels of objects and arrays in a document."""

INT_MIN = -(1 << 63)
INT_MAX = (1 << 64) - 1
_SPACE = " \t\n\r"


class _Unsure(ValueError):
    """The fast reader met something that only the strict one may judge."""


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise _Unsure
    return made


def _integer(text: str) -> int:
    if len(text) > 20:  # also keeps int() from the quadratic cost of CVE-2020-10735
        raise _Unsure
    value = int(text)
    if not INT_MIN <= value <= INT_MAX:
        raise _Unsure
    return value


def _float(text: str) -> float:
    value = float(text)
    if value - value != 0.0:  # 1e400 became infinity
        raise _Unsure
    return value


def _constant(_text: str) -> None:
    raise _Unsure


class _Options:
    strict = True
    object_hook = None
    object_pairs_hook = _pairs
    parse_float = _float
    parse_int = _integer
    parse_constant = _constant


class _Own:
    strict = True
    object_hook = object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = _constant


_scan = _make_scanner(_Options) if _make_scanner is not None else None


def _shallow(value: Any) -> bool:
    """Whether ``value`` has at most DEPTH levels; goes level by level, so depth costs no stack."""
    level = [value] if type(value) is dict or type(value) is list else []
    depth = 0
    while level:
        depth += 1
        if depth > DEPTH:
            return False
        level = [
            child
            for node in level
            for child in (node.values() if type(node) is dict else node)
            if type(child) is dict or type(child) is list
        ]
    return True


def pointer_token(name: str) -> str:
    """Return one token of a JSON pointer with its slash (RFC 6901 section 3).

    Characters that do not print are written as Python writes them: pointers are read by people, and a name of a
    hostile document must not reach a terminal or a log as a line break or an escape sequence.
    """
    if not name.isprintable():
        name = "".join(char if char.isprintable() else repr(char)[1:-1] for char in name)
    if "~" in name or "/" in name:
        name = name.replace("~", "~0").replace("/", "~1")
    return "/" + name


def loads(data: bytes, document: str, *, limit: int = LIMIT) -> Any:
    """Read one strict I-JSON document and return its value.

    ``document`` names it in errors (``config.json``, ``manifest sha256:…``); ``limit`` is the most bytes
    it may have. Raises SpecError with every finding that could be located: a JSON pointer for what is
    inside a well-formed text, line and column for what breaks its syntax.
    """
    # Escaped surrogates and NUL are for the strict reader: the C scanner lets both through.
    escaped = b"\\u0000" in data or b"\\ud" in data or b"\\uD" in data
    if not escaped and len(data) <= limit and _scan is not None:
        try:
            text = str(data, "utf-8").strip(_SPACE)
            value, end = _scan(text, 0)
            if end == len(text) and _shallow(value):
                return value
        except (ValueError, StopIteration, RecursionError, SystemError):
            # SystemError: until json.decoder is imported, 3.11's scanner fails without an exception to raise.
            pass
    from knarr.base import strictjson  # cold: only a document with something odd in it comes here

    return strictjson.parse(data, document, limit=limit)


def loads_own(data: bytes) -> Any:
    """Read what ``dumps`` wrote and whose digest was checked: duplicate names are not looked for, which is faster."""
    if _make_scanner is None:
        import json  # cold: only where _json has no scanner

        return json.loads(data)
    return _make_scanner(_Own)(str(data, "utf-8"), 0)[0]


def _refuse(value: Any) -> Any:
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def _write(value: Any, margin: str, put: Callable[[str], None], *, sort: bool) -> None:
    """Write ``value`` indented by two spaces a level; scalars and empty containers through the compact writer."""
    inner = margin + "  "
    if type(value) is dict and value:
        opener = "{\n"
        for name, item in sorted(value.items()) if sort else value.items():
            if type(name) is not str:
                _refuse(name)
            put(f"{opener}{inner}{_quote(name)}: ")
            _write(item, inner, put, sort=sort)
            opener = ",\n"
        put(f"\n{margin}}}")
    elif type(value) in (list, tuple) and value:
        opener = "[\n"
        for item in value:
            put(f"{opener}{inner}")
            _write(item, inner, put, sort=sort)
            opener = ",\n"
        put(f"\n{margin}]")
    else:
        put(_compact(value, sort=sort))


def _compact(value: Any, *, sort: bool) -> str:
    if _make_encoder is None:
        import json  # cold: only where _json has no encoder

        return json.dumps(value, sort_keys=sort, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # markers, default, encoder, indent, key separator, item separator, sort, skip odd keys, allow NaN
    encode = _make_encoder(None, _refuse, _quote, None, ":", ",", sort, False, False)
    return "".join(encode(value, 0))


def dumps(value: Any, *, indent: bool = False, sort: bool = False) -> bytes:
    """Write ``value`` (dicts, lists, tuples, str, int, float, bool, None) as UTF-8 JSON without a final newline.

    ``indent`` gives two spaces a level, ``sort`` orders the names of every object. Raises SpecError when
    a string is not Unicode text (a file name with undecodable bytes), TypeError or ValueError for values
    JSON does not have: those are mistakes of the caller.
    """
    if indent:
        parts: list[str] = []
        _write(value, "", parts.append, sort=sort)
        text = "".join(parts)
    else:
        text = _compact(value, sort=sort)
    try:
        return text.encode()
    except UnicodeEncodeError:
        from knarr.base import strictjson  # cold: names the string that cannot be written

        where = strictjson.undecodable(value)
        why = "has bytes that are not UTF-8 and cannot be written as JSON"
        raise SpecError("JSON document", [SpecFinding(where, why)]) from None
