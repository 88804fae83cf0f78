from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knarr.base.errors import KnarrError, NotFound, UsageError
from knarr.bundle.users import LAST_ID, numeric_id, resolve_user

PASSWD = b"""root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin
# a comment
+nis::::::
broken line
app:x:1000:1001:App,,,:/home/app:/bin/sh
1000:x:0:0::/:/bin/sh
short:x:7:7
odd:x:00:0::/:/bin/sh
relative:x:55:55::home/rel:/bin/sh
bytes:x:56:56::/home/\xff:/bin/sh
"""
GROUP = b"""root:x:0:root
wheel:x:10:root,app
video:x:44:other,app,root
app:x:1001:app
app2:x:1002:apps
"""


@pytest.mark.parametrize(
    "text",
    [
        "-1", "+0", "00", " 0", "0 ", "0x0", "0_0", "٠", "4294967295", "4294967296", str(2**64), "01",
        ":", "0:", ":0", "app:", ":app", "a b", "a\tb", "../x", "0:00", "0:-1", "0:4294967295", "root:0x0",
        "\0", "a:b:c",
    ],
)  # fmt: skip
def test_odd_spellings_are_refused(text: str) -> None:
    with pytest.raises((UsageError, NotFound)):
        resolve_user(text, PASSWD, GROUP)


def test_number_is_never_a_name() -> None:
    # passwd has a user called "1000" with uid 0 (CVE-2016-3697)
    user = resolve_user("1000", PASSWD, GROUP)
    assert (user.uid, user.gid, user.name) == (1000, 1001, "app")


@pytest.mark.parametrize(
    ("text", "uid", "gid", "groups", "home"),
    [
        ("", 0, 0, (0, 10, 44), "/root"),
        ("root", 0, 0, (0, 10, 44), "/root"),
        ("0", 0, 0, (0, 10, 44), "/root"),
        ("app", 1000, 1001, (1001, 10, 44), "/home/app"),
        ("app:video", 1000, 44, (44,), "/home/app"),
        ("app:7", 1000, 7, (7,), "/home/app"),
        ("1000:1000", 1000, 1000, (1000,), "/home/app"),  # CVE-2022-36109: the primary group is listed
        ("12345", 12345, 0, (0,), "/"),
        ("12345:wheel", 12345, 10, (10,), "/"),
        ("4294967294:4294967294", LAST_ID, LAST_ID, (LAST_ID,), "/"),
        ("short", 7, 7, (7,), "/"),
        ("relative", 55, 55, (55,), "/"),
        ("bytes", 56, 56, (56,), "/"),
    ],
)
def test_users(text: str, uid: int, gid: int, groups: tuple[int, ...], home: str) -> None:
    user = resolve_user(text, PASSWD, GROUP)
    assert (user.uid, user.gid, user.groups, user.home) == (uid, gid, groups, home)


def test_unknown_name_says_which_exist() -> None:
    with pytest.raises(NotFound, match="user nobody does not exist; there is root, daemon, app"):
        resolve_user("nobody", PASSWD, GROUP)
    with pytest.raises(NotFound, match="group staff does not exist"):
        resolve_user("app:staff", PASSWD, GROUP)
    with pytest.raises(NotFound, match="no usable /etc/passwd"):
        resolve_user("nobody")


def test_root_needs_no_files() -> None:
    assert resolve_user("").uid == 0
    assert resolve_user("7:8").gid == 8


def test_group_count_is_bounded() -> None:
    many = b"".join(b"g%d:x:%d:app\n" % (number, number) for number in range(70_000))
    with pytest.raises(UsageError, match="more than 65536 groups"):
        resolve_user("app", PASSWD, many)


@given(st.binary(max_size=12))
def test_numeric_id_is_the_plain_spelling_only(text: bytes) -> None:
    number = numeric_id(text)
    if number is None:
        assert not any(text == str(value).encode() for value in (0, 1, 7, 1000, LAST_ID))
    else:
        assert text == str(number).encode()
        assert 0 <= number <= LAST_ID


@given(st.integers(0, LAST_ID))
def test_numeric_id_takes_every_id(number: int) -> None:
    assert numeric_id(str(number).encode()) == number


@given(st.text(max_size=20), st.binary(max_size=200), st.binary(max_size=200))
def test_only_our_errors(text: str, passwd: bytes, group: bytes) -> None:
    try:
        user = resolve_user(text, passwd, group)
    except KnarrError:
        return
    assert 0 <= user.uid <= LAST_ID
    assert user.gid in user.groups
    assert user.home.startswith("/")
    assert "\n" not in user.home
