"""WWW-Authenticate in the shapes registries send it, and in shapes they should not (docs/security.md I12)."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knarr.registry.challenge import Challenge, choose, parse_challenges

DOCKER = 'Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push"'


def test_what_docker_hub_says() -> None:
    assert parse_challenges([DOCKER]) == [
        Challenge(
            "bearer",
            {
                "realm": "https://auth.docker.io/token",
                "service": "registry.docker.io",
                "scope": "repository:a/b:pull,push",
            },
        )
    ]


@pytest.mark.parametrize(
    ("headers", "want"),
    [
        (['Basic realm="x"'], [Challenge("basic", {"realm": "x"})]),
        (["BASIC Realm=x"], [Challenge("basic", {"realm": "x"})]),
        (["Basic"], [Challenge("basic", {})]),
        (['Basic realm="a \\"quoted\\" one"'], [Challenge("basic", {"realm": 'a "quoted" one'})]),
        (['Bearer realm="r" , service = "s"'], [Challenge("bearer", {"realm": "r", "service": "s"})]),
        (
            ['Basic realm="x", Bearer realm="y"'],
            [Challenge("basic", {"realm": "x"}), Challenge("bearer", {"realm": "y"})],
        ),
        (
            ['Basic realm="x"', 'Bearer realm="y"'],
            [Challenge("basic", {"realm": "x"}), Challenge("bearer", {"realm": "y"})],
        ),
        (['Bearer realm="a",realm="b"'], [Challenge("bearer", {"realm": "a"})]),
        (['Bearer realm="not closed'], [Challenge("bearer", {})]),
        ([""], []),
        ([", ,"], []),
        (["="], []),
        ([], []),
    ],
)
def test_shapes(headers: list[str], want: list[Challenge]) -> None:
    assert parse_challenges(headers) == want


def test_the_choice_is_always_the_same() -> None:
    both = parse_challenges(['Basic realm="x", Bearer realm="y", Bearer realm="z"'])
    assert choose(both) == Challenge("bearer", {"realm": "y"})
    assert choose(parse_challenges(["Bearer", "Basic"])) == Challenge("basic", {})
    assert choose(parse_challenges(["Bearer scope=x", "Negotiate abc"])) is None
    assert choose([]) is None


def test_no_more_than_ten_are_read() -> None:
    assert len(parse_challenges([", ".join(f'Bearer realm="{number}"' for number in range(50))])) == 10
    assert len(parse_challenges(["Basic"] * 50)) == 10


@given(st.lists(st.text('Basicer realm="\\,=x ', max_size=60) | st.text(max_size=40), max_size=12))
def test_never_an_error(headers: list[str]) -> None:
    for challenge in parse_challenges(headers):
        assert challenge.scheme == challenge.scheme.lower()


def test_long_headers_cost_little() -> None:
    began = time.monotonic()
    parse_challenges(["Bearer " + 'realm="' + "\\" * (1 << 20)] * 10)
    parse_challenges(["Bearer " + ", " * (1 << 20)] * 10)
    assert time.monotonic() - began < 2
