"""References: what people type, read as Docker and Podman do; each refusal with its rule (docs/security.md I19)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knarr.base.errors import InvalidReference
from knarr.image.reference import Reference, local_name, parse_name, parse_reference

HEX = "0123456789abcdef" * 4
DIGEST = f"sha256:{HEX}"

GOOD = {
    "busybox": ("docker.io", "library/busybox", "latest", ""),
    "busybox:1.36": ("docker.io", "library/busybox", "1.36", ""),
    "docker://busybox": ("docker.io", "library/busybox", "latest", ""),
    "a/b": ("docker.io", "a/b", "latest", ""),
    "docker.io/busybox": ("docker.io", "library/busybox", "latest", ""),
    "docker.io/a/b": ("docker.io", "a/b", "latest", ""),
    "index.docker.io/busybox": ("docker.io", "library/busybox", "latest", ""),
    "localhost/x:y": ("localhost", "x", "y", ""),
    "localhost:5000/x": ("localhost:5000", "x", "latest", ""),
    "host:5000/foo/bar:t": ("host:5000", "foo/bar", "t", ""),
    "ghcr.io/a/b__c/d--e.f:V_1.2-3": ("ghcr.io", "a/b__c/d--e.f", "V_1.2-3", ""),
    "HOST/x": ("HOST", "x", "latest", ""),
    "a:5000": ("docker.io", "library/a", "5000", ""),
    "host:latest": ("docker.io", "library/host", "latest", ""),
    "docker:dind": ("docker.io", "library/docker", "dind", ""),
    f"busybox@{DIGEST}": ("docker.io", "library/busybox", "", DIGEST),
    f"busybox:1@{DIGEST}": ("docker.io", "library/busybox", "", DIGEST),
    "[::1]:5000/x": ("[::1]:5000", "x", "latest", ""),
    "127.0.0.1:5000/x": ("127.0.0.1:5000", "x", "latest", ""),
    "xn--bcher-kva.example/x": ("xn--bcher-kva.example", "x", "latest", ""),
    "a" * 237: ("docker.io", "library/" + "a" * 237, "latest", ""),
    "x:" + "t" * 128: ("docker.io", "library/x", "t" * 128, ""),
}


@pytest.mark.parametrize("text", GOOD)
def test_names_of_registries(text: str) -> None:
    ref = parse_reference(text)
    assert (ref.registry, ref.repository, ref.tag, ref.digest) == GOOD[text]
    assert ref.transport == "docker"
    assert parse_reference(str(ref)) == ref
    assert parse_reference(ref.familiar) == ref
    assert parse_name(ref.name) == ref


def test_full_and_familiar_names() -> None:
    assert parse_reference("busybox").name == "docker.io/library/busybox:latest"
    assert parse_reference("busybox").familiar == "busybox:latest"
    assert parse_reference("a/b:1").familiar == "a/b:1"
    assert parse_reference("quay.io/b:1").familiar == "quay.io/b:1"


LOCAL = {
    "oci:/tmp/x": Reference("oci", "/tmp/x"),
    "oci:x:1.0": Reference("oci", "x", tag="1.0"),
    "oci:x:docker.io/library/busybox:latest": Reference("oci", "x", tag="docker.io/library/busybox:latest"),
    f"oci:x@{DIGEST}": Reference("oci", "x", digest=DIGEST),
    "oci:with space/ü:t": Reference("oci", "with space/ü", tag="t"),
    "oci-archive:f.tar": Reference("oci-archive", "f.tar"),
    "oci-archive:f.tar:t": Reference("oci-archive", "f.tar", tag="t"),
    "docker-archive:f.tar": Reference("docker-archive", "f.tar"),
    "docker-archive:f.tar:busybox": Reference(
        "docker-archive", "f.tar", registry="docker.io", repository="library/busybox", tag="latest"
    ),
    "host:": Reference("host"),
    "bundle:/x:y": Reference("bundle", "/x:y"),
}


@pytest.mark.parametrize("text", LOCAL)
def test_local_transports(text: str) -> None:
    ref = parse_reference(text)
    assert ref == LOCAL[text]
    assert parse_reference(str(ref)) == ref


BAD = {
    "": "it is empty",
    "a/../b": "'..' cannot be a part of the name",
    "a/./b": "'.' cannot be a part of the name",
    "Busybox": "'Busybox' in the name has capital letters",
    "a/B": "'B' in the name has capital letters",
    "x" * 300: "the name has 318 characters, at most 255",
    "h.x/" + "a/" * 130 + "b": "at most 255",
    "a:" + "t" * 129: "the tag has 129 characters, at most 128",
    "a:": "the tag after the colon is empty",
    "a:..": "the tag '..' starts with '.'",
    "a:-x": "starts with '-'",
    "a:b/c": "port 'b' is not a number",
    "a:b$c": "'\\$' cannot be part of a tag",
    "a@sha256:abc": "sha256 needs 64 hexadecimal digits, it has 3",
    f"a@sha256:{HEX.upper()}": "lower-case",
    "a@md5:" + "a" * 32: "md5 is not an algorithm",
    "a@": "no colon",
    f"@{DIGEST}": "the name is empty",
    "user:pw@host/x": "a user name or password does not belong",
    "bücher.de/x": "'ü' is not an ASCII character",
    "::1/x": "more than one colon",
    "fe80::1%eth0/x": "more than one colon",
    "[::1/x": "no closing bracket",
    "[::1]x/y": "no closing bracket",
    "[zz]:1/x": "'zz' is not an IPv6 address",
    "[fe80::1%eth0]:1/x": "is not an IPv6 address",
    "[::1]:0/x": "the port '0'",
    "h:0/x": "the port '0' is not a number from 1 to 65535",
    "h:70000/x": "the port '70000'",
    "h:/x": "the port ''",
    "h:٣/x": "not an ASCII",
    "h..x/c": "has an empty part",
    ".x/c": "has an empty part",
    "-h.x/c": "starts or ends with a hyphen",
    "h_x.y/c": "'_' cannot be part of a host name",
    "a___b": "'___' does not separate",
    "a._b": "'._' does not separate",
    "-a": "starts with '-'",
    "_a": "starts with '_'",
    "a-": "ends with '-'",
    "a//b": "empty part between slashes",
    "/a": "empty part between slashes",
    "a/": "empty part between slashes",
    "a\nb": r"the character '\\n' cannot be part of a reference",
    "a\0": r"the character '\\x00'",
    "a\x1b[31m": r"'\\x1b'",
    "a b": "the character ' ' cannot be part of a name",
    "a*": r"'\*' cannot be part",
    HEX: "64 hexadecimal digits are an image id",
    "oci:": "a directory must follow oci:",
    "oci::x": "a directory must follow oci:",
    "oci:d:a\\b": r"'\\\\' cannot be part of a tag",
    "oci:d:-x": "the tag starts with '-'",
    f"oci:d@sha256:{HEX}0": "it has 65",
    "oci-archive:": "a file must follow oci-archive:",
    "docker-archive:f:Bad": "capital letters",
    "bundle:": "a directory must follow bundle:",
    "docker://": "a name must follow docker://",
    "ostree:/x": "ostree: is not a transport of knarr",
    "https://host/x": "https: is not a transport of knarr",
}


@pytest.mark.parametrize("text", BAD)
def test_each_refusal_names_its_rule(text: str) -> None:
    with pytest.raises(InvalidReference, match=BAD[text]) as caught:
        parse_reference(text)
    said = str(caught.value)
    assert len(said) < 700
    assert said.isprintable()


@pytest.mark.parametrize(
    "text",
    [
        "user:hunter2@host/x",
        "docker://user:hunter2@host/x",
        "https://user:hunter2@host/x",
        "user:hun/ter2hunter2@host/x",
        f"user:hunter2@host/x@{DIGEST}",
        "user:hunter2@",
        "user:hunter2@host/\n",
    ],
)
def test_passwords_are_never_repeated(text: str) -> None:
    with pytest.raises(InvalidReference) as caught:
        parse_reference(text)
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in repr(caught.value.__dict__)


@given(
    st.text(max_size=40)
    | st.text("abAB01._-:/@[]%~", max_size=30)
    | st.from_regex(r"\A([a-z0-9.]{1,8}(:[0-9]{1,6})?/)?[a-z0-9_.-]{1,10}(/[a-z0-9_.-]{1,5})?(:[\w.-]{1,5})?\Z")
)
def test_nothing_but_invalid_reference_comes_out_and_what_passes_is_safe(text: str) -> None:
    try:
        ref = parse_reference(text)
    except InvalidReference as error:
        ref, said = None, str(error)
    else:
        said = ""
    assert said.isprintable()
    if ref is None:
        return
    assert parse_reference(str(ref)) == ref
    if ref.transport == "docker":
        for part in (*ref.repository.split("/"), ref.tag):
            assert part not in {".", ".."}
        assert not set(ref.name) & set("@\\ %?#") or ref.digest
        assert ref.name.isascii()
        assert len(ref.registry) + len(ref.repository) < 256


def test_names_for_images_out_of_files() -> None:
    assert local_name("/tmp/Busy Box.tar.gz", "1.0") == "localhost/busy-box:1.0"
    assert local_name("x", "quay.io/a/b") == "quay.io/a/b:latest"
    assert local_name("x", "library/b:2") == "docker.io/library/b:2"
    assert local_name("/", "") == "localhost/image:latest"
    assert local_name("--", "+x+y") == "localhost/image:x-y"
    assert local_name("ünï", "") == "localhost/n:latest"
    assert local_name("x", "UP/PER:t") == "localhost/x:PER-t"


@given(st.text(max_size=30), st.text("abAB1._-:@/+", max_size=30))
def test_such_a_name_is_always_a_name(path: str, tag: str) -> None:
    name = local_name(path, tag)
    assert parse_name(name).name == name
