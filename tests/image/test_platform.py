"""Platforms: spelling, variants, what runs where."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knarr.base.errors import UsageError
from knarr.image.platform import Platform, accepted, host_platform, parse_platform, platform_of, runs


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("linux/amd64", "linux/amd64"),
        ("amd64", "linux/amd64"),
        ("x86_64", "linux/amd64"),
        ("linux/aarch64", "linux/arm64"),
        ("linux/arm64/v8", "linux/arm64"),
        ("linux/arm64/8", "linux/arm64"),
        ("linux/arm", "linux/arm/v7"),
        ("armhf", "linux/arm/v7"),
        ("armel", "linux/arm/v6"),
        ("linux/arm/v6", "linux/arm/v6"),
        ("LINUX/AMD64/V1", "linux/amd64"),
        ("linux/amd64/v3", "linux/amd64/v3"),
        ("i686", "linux/386"),
        ("windows/amd64", "windows/amd64"),
        ("linux/riscv64", "linux/riscv64"),
    ],
)
def test_spellings(text: str, want: str) -> None:
    assert str(parse_platform(text)) == want


@pytest.mark.parametrize(
    "text", ["", "/", "linux/", "/amd64", "a/b/c/d", "linux/../x", "linux/a b", "linux/a\n", "ü/x"]
)
def test_what_is_no_platform(text: str) -> None:
    with pytest.raises(UsageError, match="os/architecture"):
        parse_platform(text)


def test_order_of_variants() -> None:
    assert [str(p) for p in accepted(parse_platform("linux/arm/v7"))] == [
        "linux/arm/v7",
        "linux/arm/v6",
        "linux/arm/v5",
    ]
    assert [str(p) for p in accepted(parse_platform("linux/amd64/v3"))] == [
        "linux/amd64/v3",
        "linux/amd64/v2",
        "linux/amd64",
    ]
    assert [str(p) for p in accepted(parse_platform("linux/arm64"))] == ["linux/arm64"]
    assert [str(p) for p in accepted(parse_platform("linux/arm64/v9.1"))] == [
        "linux/arm64/v9.1",
        "linux/arm64/v9",
        "linux/arm64",
    ]
    assert not runs(parse_platform("linux/arm/v7"), parse_platform("linux/arm/v6"))
    assert runs(parse_platform("linux/arm/v6"), parse_platform("linux/arm"))
    assert not runs(parse_platform("linux/amd64/v2"), parse_platform("linux/amd64"))
    assert not runs(parse_platform("linux/arm"), parse_platform("linux/arm64"))
    assert not runs(parse_platform("windows/amd64"), parse_platform("linux/amd64"))


def test_this_machine() -> None:
    names = {"x86_64": "linux/amd64", "aarch64": "linux/arm64"}
    machine = os.uname().machine
    if machine not in names:
        pytest.skip(f"no expectation for {machine}")
    assert str(host_platform()) == names[machine]


def test_values_of_images_are_only_shown() -> None:
    odd = platform_of({"os": "../x", "architecture": "a\x1b[31mb", "variant": "\n"})
    assert str(odd) == r"../x/a\x1b[31mb/\n"
    assert platform_of({"architecture": "arm64", "os": "linux", "variant": "v8"}) == Platform("linux", "arm64")


@given(st.builds(Platform, st.text(max_size=5), st.sampled_from(["arm", "amd64", "arm64", "x"]), st.text(max_size=4)))
def test_everything_runs_on_itself(platform: Platform) -> None:
    same = platform_of({"os": platform.os, "architecture": platform.architecture, "variant": platform.variant})
    assert runs(same, same)
