"""base.ids: names that become file names."""

from __future__ import annotations

import pytest

from knarr.base.errors import InvalidId
from knarr.base.ids import LONGEST, check_id, new_id


@pytest.mark.parametrize("text", ["a", "0", "A.b_c-d+e", "x" * LONGEST, "web..1", "1-"])
def test_accepted(text: str) -> None:
    assert check_id(text) is text


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "it is empty"),
        (".", "must start with"),
        ("..", "must start with"),
        ("-x", "must start with"),
        ("_x", "must start with"),
        ("+x", "must start with"),
        ("a/b", "'/' is not allowed"),
        ("../x", "'/' is not allowed"),
        ("a b", "' ' is not allowed"),
        ("a\n", "is not allowed"),
        ("a\0", "is not allowed"),
        ("ß", "'ß' is not allowed"),
        ("a١", "is not allowed"),  # a digit, but not an ASCII one
        ("x" * (LONGEST + 1), "it has 129 characters, at most 128"),
    ],
)
def test_refused_with_the_rule(text: str, rule: str) -> None:
    with pytest.raises(InvalidId) as caught:
        check_id(text, "volume name")
    assert rule in caught.value.rule
    assert str(caught.value).startswith("invalid volume name ")


def test_new_ids_are_valid_and_differ() -> None:
    made = {new_id() for _ in range(100)}
    assert len(made) == 100
    assert all(len(check_id(each)) == 64 for each in made)
