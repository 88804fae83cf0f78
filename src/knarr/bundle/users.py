"""Who a container runs as: an image's or a user's ``USER`` text and the image's own passwd and group files.

Everything works on bytes that the caller has read inside the image, bounded, from regular files. A number is an
id and never looked up as a name; the accepted spellings are docs/security.md I13: Python's ``int`` would take
"+0", " 0", "0_0" and other scripts' digits. Follows passwd(5), group(5) and image-spec config.md, "User".
"""

from __future__ import annotations

from knarr.base.errors import NotFound, UsageError
from knarr.base.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

LIMIT = 10 << 20
"""Most bytes of a passwd or group file that are read (what containerd and Docker allow)."""

LAST_ID = 0xFFFFFFFE
"""The highest uid or gid; 2**32-1 means "no change" to setresuid(2), which would leave root in place."""

MOST_GROUPS = 65536  # NGROUPS_MAX
_DIGITS = frozenset(b"0123456789")


class ContainerUser(Record):
    """The identity of a container's process: numbers, and what passwd says about them (name may be empty)."""

    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()
    name: str = ""
    home: str = "/"


def numeric_id(text: bytes) -> int | None:
    """The id that ``text`` spells: ASCII digits, no sign, space or leading zero, at most 2**32-2; None otherwise."""
    if not text or len(text) > 10 or not _DIGITS.issuperset(text) or (text[0] == 0x30 and len(text) > 1):
        return None
    value = int(text)
    return value if value <= LAST_ID else None


def resolve_user(text: str, passwd: bytes = b"", group: bytes = b"") -> ContainerUser:
    """Return the identity for ``text``: ``""``, ``user``, ``uid``, ``user:group``, ``uid:gid`` and mixtures.

    Without a group, the group and the supplementary groups of that user in the image's files apply; with one, only
    that. The primary group is always among ``groups``: leaving it out let files with mode 0604 be read through a
    setgid program (CVE-2022-36109). Raises UsageError for a text that is neither a name nor an id, NotFound for a
    name that the image does not know.
    """
    try:
        raw = text.encode()
    except UnicodeEncodeError:
        raise UsageError(f"user {text!r} is not UTF-8 text") from None
    user_text, colon, group_text = raw.partition(b":")
    if colon and not (user_text and group_text):
        raise UsageError(f"user {text!r} should be user, uid, user:group or uid:gid")
    uid = _id_or_name(user_text, "user") if user_text else 0
    entry = _passwd_entry(passwd, uid if uid is not None else user_text)
    if uid is None:
        if entry is None:
            raise _unknown("user", user_text, _names(passwd), "/etc/passwd")
        uid = entry[1]
    name, gid, home = (entry[0], entry[2], entry[3]) if entry else (b"", 0, b"/")
    if group_text:
        number = _id_or_name(group_text, "group")
        if number is None:
            number = _group_id(group, group_text)
            if number is None:
                raise _unknown("group", group_text, _names(group), "/etc/group")
        gid = number
        groups: tuple[int, ...] = (gid,)
    else:
        groups = (gid, *_memberships(group, name, gid)) if name else (gid,)
    return ContainerUser(uid, gid, groups, _text(name), _text(home) or "/")


def _id_or_name(text: bytes, kind: str) -> int | None:
    """The id, or None when ``text`` is a name; refuses what some other tool could read as another number."""
    number = numeric_id(text)
    if number is not None:
        return number
    shown = text.decode()
    if _DIGITS.issuperset(text):
        raise UsageError(f"{kind} id {shown} is not a number from 0 to {LAST_ID} without leading zeros")
    if text[0] in b"+-" or any(byte <= 0x20 or byte == 0x7F for byte in text) or b"/" in text or b":" in text:
        raise UsageError(f"{kind} {shown!r} is neither a name nor an id")
    return None


def _unknown(kind: str, name: bytes, known: list[str], where: str) -> NotFound:
    among = f"{', '.join(known[:12])}{' …' if len(known) > 12 else ''} in the image's {where}" if known else ""
    hint = "" if known else f"the image has no usable {where}; give a number"
    return NotFound(kind, name.decode(), among=among, hint=hint)


def _lines(data: bytes, fields: int) -> Iterator[list[bytes]]:
    """The well-formed lines of a passwd or group file, split at colons; odd ones are skipped as libc does."""
    for line in data.split(b"\n"):
        if line and line[0] not in b"#+-" and b"\0" not in line:
            parts = line.split(b":")
            if len(parts) >= fields:
                yield parts


def _passwd_entry(data: bytes, wanted: int | bytes) -> tuple[bytes, int, int, bytes] | None:
    """(name, uid, gid, home) of the first line with that name or, for an int, that uid."""
    for parts in _lines(data, 4):
        uid, gid = numeric_id(parts[2]), numeric_id(parts[3])
        if uid is not None and gid is not None and (uid if isinstance(wanted, int) else parts[0]) == wanted:
            home = parts[5] if len(parts) > 5 and parts[5].startswith(b"/") else b"/"
            return parts[0], uid, gid, home
    return None


def _group_id(data: bytes, name: bytes) -> int | None:
    for parts in _lines(data, 3):
        gid = numeric_id(parts[2])
        if parts[0] == name and gid is not None:
            return gid
    return None


def _memberships(data: bytes, name: bytes, primary: int) -> list[int]:
    """Ids of the groups that list ``name``, without the primary one, each once, in the file's order."""
    found: dict[int, None] = {}
    for parts in _lines(data, 4):
        gid = numeric_id(parts[2])
        if gid is not None and gid != primary and name in parts[3].strip().split(b","):
            found[gid] = None
            if len(found) >= MOST_GROUPS:
                raise UsageError(f"user {_text(name)} is in more than {MOST_GROUPS} groups of the image's /etc/group")
    return list(found)


def _names(data: bytes) -> list[str]:
    return [_text(parts[0]) for parts in _lines(data, 3) if parts[0]][:13]


def _text(raw: bytes) -> str:
    """``raw`` as text; what is not UTF-8 cannot stand in config.json and becomes empty."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return ""
