"""Digests: grammar, usable algorithms, what is refused (docs/security.md I11)."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knarr.base.errors import InvalidDigest
from knarr.content.digest import Digest, hasher, sha256_of, usable

HEX = "0123456789abcdef" * 4


@pytest.mark.parametrize("text", [f"sha256:{HEX}", f"sha512:{HEX}{HEX}"])
def test_usable_digests(text: str) -> None:
    digest = usable(text)
    assert digest == text
    assert (digest.algorithm, digest.encoded) == tuple(text.split(":"))
    assert digest.usable


@pytest.mark.parametrize(
    "text",
    [
        "foo:abc",
        "sha1:da39a3ee5e6b4b0d3255bfef95601890afd80709",
        "blake3:" + HEX,
        "multihash+base58:Qm-_=1",
        "a.b_c-d+e:0",
    ],
)
def test_unknown_algorithms_are_carried_but_not_consumed(text: str) -> None:
    assert Digest.parse(text) == text
    assert not Digest.parse(text).usable
    with pytest.raises(InvalidDigest, match="not an algorithm knarr can check"):
        usable(text)


BAD = {
    "": "no colon",
    HEX: "no colon",
    f":{HEX}": "no algorithm",
    "sha256:": "no value",
    "md5:": "no value",
    f"sha256:{HEX.upper()}": "lower-case",
    f"sha256:{HEX[1:]}": "it has 63",
    f"sha256:{HEX}0": "it has 65",
    f"sha256:{HEX}\n": r"'\\n' cannot be",
    f"sha256:{HEX[1:]}\n": r"'\\n' cannot be",
    "sha256:../../x": "'.' cannot be",
    "sha256:aa/bb": "'/' cannot be",
    "../x": "no colon",
    f"sha256:{'a' * 10_240}": "has 10247 characters",
    f"sha256:{'٠' * 64}": "cannot be part",
    f"SHA256:{HEX}": "'S' cannot be",
    f"sha256:{HEX}:{HEX}": "':' cannot be",
    f"+sha256:{HEX}": "does not follow",
    f"a++b:{HEX}": "does not follow",
    f"a.:{HEX}": "ends with",
    f" sha256:{HEX}": "' ' cannot be",
}


@pytest.mark.parametrize("text", BAD)
def test_malformed_digests_are_refused(text: str) -> None:
    with pytest.raises(InvalidDigest, match=BAD[text]) as caught:
        Digest.parse(text)
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)


@given(st.text(max_size=90) | st.from_regex(r"\A[a-z0-9]{1,6}:[a-zA-Z0-9=_-]{1,70}\Z"))
def test_only_invalid_digest_comes_out_and_what_passes_is_a_safe_name(text: str) -> None:
    try:
        digest = Digest.parse(text)
    except InvalidDigest:
        return
    assert digest == text
    assert digest.isascii()
    assert not set(digest) & set("/\0\n ")
    assert digest.encoded not in {"", ".", ".."}


@given(st.binary(max_size=5000))
def test_sha256_of(data: bytes) -> None:
    assert sha256_of(data) == "sha256:" + hashlib.sha256(data).hexdigest()


def test_hasher_refuses_the_rest() -> None:
    assert hasher("sha512").hexdigest() == hashlib.sha512().hexdigest()
    with pytest.raises(InvalidDigest):
        hasher("md5")
