"""base.fastjson and base.strictjson: what is refused, where and why, and that the two readers agree."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knarr.base import fastjson, strictjson
from knarr.base.errors import SpecError, SpecFinding

SRC = str(Path(fastjson.__file__).parents[2])

# bytes, then the findings: pointer and a part of the reason
REFUSED = [
    (b"", "", "is empty"),
    (b"   ", "", "line 1 column 4: a value is missing"),
    (b"\xef\xbb\xbf{}", "", "byte order mark"),
    ("{}".encode("utf-16"), "", "UTF-16"),
    ("{}".encode("utf-16-be"), "", "line 1 column 1"),
    (b'{"a":"\xff"}', "", "line 1 column 7: byte 0xff is not valid UTF-8"),
    (b'["\xed\xa0\x80"]', "", "byte 0xed is not valid UTF-8"),  # a surrogate written as if it were a character
    (b"[1,\n 2", "", 'line 2 column 3: "," or "]" is missing'),
    (b"{", "", "line 1 column 2"),
    (b"{]", "", "line 1 column 2"),
    (b'{"a":1,}', "", "line 1 column 8"),
    (b'{"a" 1}', "", 'line 1 column 6: ":" is missing'),
    (b'{"a":}', "", "line 1 column 6: a value is missing"),
    (b'{"a":1 "b":2}', "", 'line 1 column 8: "," or "}" is missing'),
    (b"{a:1}", "", "line 1 column 2"),
    (b"[1,]", "", "line 1 column 4"),
    (b"'a'", "", 'unexpected "\'"'),
    (b"nul", "", "line 1 column 1"),
    (b"[01]", "", "line 1 column 3"),
    (b"[1.]", "", "a digit is missing"),
    (b"[.5]", "", "unexpected '.'"),
    (b"[+1]", "", "unexpected '+'"),
    (b"[1e]", "", "a digit is missing"),
    (b"[-]", "", "a digit is missing"),
    (b'["\t"]', "", "control character 0x09"),
    (b'["\x00"]', "", "control character 0x00"),
    (b'["a', "", "the string does not end"),
    (b'["\\', "", "the string does not end"),
    (b'["\\x41"]', "", "unknown escape \\x"),
    (b'["\\u12"]', "", "four hexadecimal digits"),
    (b"{} {}", "", "line 1 column 4: more data after the document"),
    (b"{}\0", "", "more data"),
    (b'{"a":1,"a":1}', "/a", "occurs twice"),
    (b'{"x":[{"b~/":1,"b~/":2}]}', "/x/0/b~0~1", "occurs twice"),
    (b'{"a":1,"\\u0061":2}', "/a", "occurs twice"),
    (b'{"\\n\\u001b[2J":NaN}', "/\\n\\x1b[2J", "NaN is not"),  # no line break and no escape sequence in a message
    (b"NaN", "", "NaN is not a JSON number"),
    (b'{"a":[0,Infinity]}', "/a/1", "Infinity is not"),
    (b'{"a":-Infinity}', "/a", "-Infinity is not"),
    (b"[1e400]", "/0", "1e400 is too large"),
    (b"[-1e400]", "/0", "-1e400 is too large"),
    (b"[18446744073709551616]", "/0", "fits neither int64 nor uint64"),
    (b"[-9223372036854775809]", "/0", "fits neither"),
    (b"[" + b"9" * 5000 + b"]", "/0", "fits neither"),
    (b'["\\ud800"]', "/0", "a lone surrogate"),
    (b'["\\uDC00\\uD800"]', "/0", "a lone surrogate"),
    (b'{"\\ud800":1}', "", "a lone surrogate"),
    (b'{"k":"a\\u0000b"}', "/k", "U+0000"),
    (b"[" * 101 + b"]" * 101, "", "line 1 column 101: nested deeper than 100 levels"),
    (b"[" * 200_000, "", "nested deeper than 100 levels"),
    (b'{"a":' * 200_000, "", "nested deeper than 100 levels"),
]


@pytest.mark.parametrize(("data", "pointer", "why"), REFUSED)
def test_refused_with_place_and_reason(data: bytes, pointer: str, why: str) -> None:
    with pytest.raises(SpecError) as caught:
        fastjson.loads(data, "doc.json")
    assert caught.value.document == "doc.json"
    assert [found.pointer for found in caught.value.findings] == [pointer]
    assert why in caught.value.findings[0].why
    assert "\n" not in str(caught.value)


def test_everything_wrong_is_told_at_once() -> None:
    with pytest.raises(SpecError) as caught:
        fastjson.loads(b'{"a":NaN,"b":{"c":1,"c":1e999},"d":"\\u0000"} x', "doc.json")
    assert [found.pointer for found in caught.value.findings] == ["/a", "/b/c", "/b/c", "/d", ""]
    with pytest.raises(SpecError) as caught:
        fastjson.loads(b"[" + b"NaN," * 10_000 + b"0]", "doc.json")
    assert len(caught.value.findings) == strictjson.MOST_FINDINGS + 1


GOOD = [
    b"null",
    b" \t\r\n{} \n",
    b'{"a":{},"b":[],"":0,"c":-0,"d":true,"e":false,"f":null}',
    b"[18446744073709551615,-9223372036854775808,0,-1,1.5,-2.5e-3,1E+2,0e0]",
    '["ä€😀","\\u00e4\\n\\"\\\\\\/\\b\\f\\r\\t","\\ud83d\\ude00","\\\\ud800","\\\\u0000","\\uD83D\\uDE00"]'.encode(),
    b"[" * 100 + b"]" * 100,
    b'{"\\u003c":"\\u0001"}',
]


@pytest.mark.parametrize("data", GOOD)
def test_accepted_as_json_reads_it(data: bytes) -> None:
    assert fastjson.loads(data, "doc.json") == json.loads(data)
    assert strictjson.parse(data, "doc.json", limit=len(data)) == json.loads(data)


def test_size_is_bounded() -> None:
    assert fastjson.loads(b"[1, 2]", "doc.json", limit=6) == [1, 2]
    with pytest.raises(SpecError, match="has 6 bytes, at most 5 are read"):
        fastjson.loads(b"[1, 2]", "doc.json", limit=5)


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    # no NUL and no surrogates: those are refused, and have their own tests
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), inner, max_size=4)
    ),
    max_leaves=20,
)


@settings(deadline=None)
@given(values, st.booleans(), st.booleans())
def test_what_is_written_is_read_back(value: object, indent: bool, sort: bool) -> None:
    data = fastjson.dumps(value, indent=indent, sort=sort)
    assert data.decode() == json.dumps(
        value,
        ensure_ascii=False,
        sort_keys=sort,
        indent=2 if indent else None,
        separators=(",", ": ") if indent else (",", ":"),
    )
    assert fastjson.loads(data, "doc.json") == value
    assert strictjson.parse(data, "doc.json", limit=len(data)) == value


@settings(deadline=None)
@given(values)
def test_what_was_written_here_is_read_faster(value: object) -> None:
    assert fastjson.loads_own(fastjson.dumps(value)) == value


def _verdict(data: bytes) -> tuple[object, bool]:
    try:
        return fastjson.loads(data, "doc.json"), True
    except SpecError:
        return None, False


pieces = st.sampled_from(
    [
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b":",
        b'"',
        b'"a"',
        b'"\\u0061"',
        b'"\\ud83d',
        b"\\",
        b"1",
        b"-",
        b"0",
        b".5",
        b"e9",
        b"true",
        b"null",
        b"NaN",
        b" ",
        b"\n",
        b"\x00",
        b"\xff",
        "é".encode(),
        b"99999999999999999999",
        b'"\\u0000"',
    ]
)


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=60) | st.lists(pieces, max_size=14).map(b"".join))
def test_any_bytes_give_a_value_or_a_spec_error_and_both_readers_agree(data: bytes) -> None:
    value, good = _verdict(data)
    try:
        slow, slow_good = strictjson.parse(data, "doc.json", limit=len(data)), True
    except SpecError:
        slow, slow_good = None, False
    assert good == slow_good
    assert repr(value) == repr(slow)
    try:
        lenient = json.loads(data)
    except ValueError:
        assert not good
    else:
        assert not good or lenient == value


@settings(deadline=None, max_examples=200)
@given(values, st.data())
def test_damaged_documents(value: object, data: st.DataObject) -> None:
    text = bytearray(fastjson.dumps(value))
    at = data.draw(st.integers(0, len(text) - 1))
    kind = data.draw(st.sampled_from(["cut", "drop", "flip", "insert"]))
    if kind == "cut":
        del text[at:]
    elif kind == "drop":
        del text[at]
    elif kind == "flip":
        text[at] ^= 1 << data.draw(st.integers(0, 7))
    else:
        text[at:at] = data.draw(pieces)
    read, good = _verdict(bytes(text))
    if good:
        assert json.loads(bytes(text)) == read


def test_undecodable_file_names_are_refused_with_their_place() -> None:
    for value, pointer in (
        ({"process": {"args": ["ok", "x\udcff"]}}, "/process/args/1"),
        ({"a": {"n\udcff/": 1}}, "/a"),
        (["\ud800"], "/0"),
        ("\udcff", ""),
    ):
        for indent in (False, True):
            with pytest.raises(SpecError) as caught:
                fastjson.dumps(value, indent=indent)
            assert caught.value.findings == [
                SpecFinding(pointer, "has bytes that are not UTF-8 and cannot be written as JSON")
            ]


@pytest.mark.parametrize("indent", [False, True])
def test_values_that_json_does_not_have_are_the_callers_mistake(indent: bool) -> None:
    with pytest.raises(TypeError):
        fastjson.dumps({"a": b"x"}, indent=indent)
    with pytest.raises(TypeError):
        fastjson.dumps([{1, 2}], indent=indent)
    with pytest.raises(ValueError, match="Out of range"):
        fastjson.dumps([float("nan")], indent=indent)
    with pytest.raises(ValueError, match="Out of range"):
        fastjson.dumps({"a": {"b": float("inf")}}, indent=indent)
    assert json.loads(fastjson.dumps({"a": (1, (2,))}, indent=indent)) == {"a": [1, [2]]}


def _run(code: str) -> str:
    program = f"import sys; sys.path.insert(0, {SRC!r})\n{code}"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, check=True)
    return done.stdout


def test_reading_and_writing_good_documents_imports_no_json() -> None:
    # Only for good documents: to report a bad one, CPython's own C code imports json.decoder.
    clean = _run(
        "from knarr.base import fastjson\n"
        "fastjson.dumps(fastjson.loads(b'{\"a\":[1,2.5,\"x\"]}', 'd'), indent=True)\n"
        "print(sorted(name for name in sys.modules if name in ('json', 're', 'enum', 'typing', 'functools')))"
    )
    assert clean == "[]\n"


def test_refusals_need_no_json_either() -> None:
    """In a process like the runtime's, where nothing has imported json."""
    documents = [data for data, _, _ in REFUSED if len(data) < 10_000]
    out = _run(
        "from knarr.base import fastjson, errors\n"
        f"for data in {documents!r}:\n"
        "    try: fastjson.loads(data, 'doc.json')\n"
        "    except errors.SpecError as error: print(ascii(error.findings))\n"
    )
    expected = []
    for data in documents:
        with pytest.raises(SpecError) as caught:
            fastjson.loads(data, "doc.json")
        expected.append(ascii(caught.value.findings))
    assert out.splitlines() == expected


def test_without_the_c_accelerator_the_answers_are_the_same() -> None:
    out = _run(
        "sys.modules['_json'] = None\n"
        "from knarr.base import fastjson, errors\n"
        "value = {'b': [1, 2.5, 'ä\\n', None, True], 'a': {}}\n"
        "assert fastjson._scan is None\n"
        "for indent in (False, True):\n"
        "    data = fastjson.dumps(value, indent=indent, sort=True)\n"
        "    assert fastjson.loads(data, 'd') == value\n"
        "    print(data)\n"
        "try: fastjson.loads(b'[1,1e400]', 'd')\n"
        "except errors.SpecError as error: print(error)\n"
    )
    value = {"b": [1, 2.5, "ä\n", None, True], "a": {}}
    plain, indented, refused = out.splitlines()
    assert plain == repr(fastjson.dumps(value, sort=True))
    assert indented == repr(fastjson.dumps(value, sort=True, indent=True))
    assert refused.endswith("1e400 is too large for a number")
