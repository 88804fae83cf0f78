"""The rules of org.knarr.landlock: what they mean, and what is refused. No kernel."""

from __future__ import annotations

import json
from typing import Any

import pytest

from knarr.base.errors import SpecError, Unsupported
from knarr.plan.landlock import landlock_ops
from knarr.plan.ops import OPTIONAL, Op

AT = "/annotations/org.knarr.landlock"
FS_1, FS_3, FS_5 = (1 << 13) - 1, (1 << 15) - 1, (1 << 16) - 1


def compiled(rules: Any, abi: int = 7) -> list[Op]:
    text = rules if isinstance(rules, str) else json.dumps(rules)
    return landlock_ops({"annotations": {"org.knarr.landlock": text}}, abi, 9)


def test_nothing_without_the_annotation() -> None:
    assert landlock_ops({}, 0, 9) == []
    assert landlock_ops({"annotations": {"a": "b"}}, 0, 9) == []


def test_the_operations() -> None:
    rules = {
        "paths": [
            {"path": "/usr", "access": ["read", "execute"]},
            {"path": "/run/x", "access": ["write_file"], "optional": True},
        ],
        "ports": [{"port": 80, "access": ["bind"]}, {"port": 443, "access": ["connect", "bind"]}],
        "scopes": ["signal"],
    }
    assert compiled(rules) == [
        Op("landlock_create", (9, FS_3, 3, 2), (), AT),
        Op("landlock_path", (9, 0b1101, 0), ("/usr",), AT),
        Op("landlock_path", (9, 2, OPTIONAL), ("/run/x",), AT),
        Op("landlock_port", (9, 1, 80), (), AT),
        Op("landlock_port", (9, 3, 443), (), AT),
        Op("landlock_restrict", (9,), (), AT),
    ]


def test_what_is_not_named_is_not_controlled() -> None:
    assert compiled({"paths": []})[0] == Op("landlock_create", (9, FS_3, 0, 0), (), AT)
    assert compiled({"ports": []})[0] == Op("landlock_create", (9, 0, 3, 0), (), AT)
    assert compiled({"scopes": ["abstract-unix-socket"]})[0] == Op("landlock_create", (9, 0, 0, 1), (), AT)


def test_the_version_decides_what_is_controlled_not_the_kernel() -> None:
    write = {"path": "/", "access": ["write"]}
    for kernel in (1, 3, 7):
        create, path, _ = compiled({"abi": 1, "paths": [write]}, kernel)
        assert create.ints == (9, FS_1, 0, 0)
        assert path.ints[1] & ~FS_1 == 0, "the group is cut to what is controlled"
    assert compiled({"abi": 5, "paths": [{"path": "/dev", "access": ["ioctl_dev"]}]}, 7)[0].ints[1] == FS_5
    assert compiled({"paths": [write]})[1].ints[1] >> 14 == 1, "truncate belongs to write"


@pytest.mark.parametrize(
    ("rules", "abi", "words"),
    [
        ({"paths": []}, 0, r"it takes Landlock version 3 \(Linux 6.2\), this kernel has none"),
        ({"paths": []}, 2, "this kernel has version 2"),
        ({"abi": 5, "paths": []}, 4, r"version 5 \(Linux 6.10\)"),
        ({"ports": []}, 3, r"ports with Landlock is not supported: it takes Landlock version 4 \(Linux 6.7\)"),
        ({"abi": 1, "scopes": ["signal"]}, 5, r"scopes with Landlock is not supported: it takes Landlock version 6"),
    ],
)
def test_what_the_kernel_lacks(rules: dict[str, Any], abi: int, words: str) -> None:
    with pytest.raises(Unsupported, match=words) as caught:
        compiled(rules, abi)
    assert caught.value.pointer == AT


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ("", "org.knarr.landlock"),
        ("{", "org.knarr.landlock"),
        ('{"paths": [], "paths": []}', "paths"),
        ([], "must be an object with paths, ports or scopes"),
        ({}, "must be an object with paths, ports or scopes"),
        ({"paths": [], "path": []}, "/path: is not known"),
        ({"paths": {}}, "/paths: must be a list"),
        ({"paths": [1]}, "/paths/0: must be an object with access, optional, path"),
        ({"paths": [{"path": "/", "access": ["read"], "x": 1}]}, "/paths/0: must be an object"),
        ({"paths": [{"path": "x", "access": ["read"]}]}, "/paths/0/path: must be an absolute path"),
        ({"paths": [{"path": "/\0", "access": ["read"]}]}, "/paths/0/path"),
        ({"paths": [{"path": "/"}]}, "/paths/0/access: must be a list"),
        ({"paths": [{"path": "/", "access": []}]}, "/paths/0/access: must name at least one"),
        ({"paths": [{"path": "/", "access": [5]}]}, "/paths/0/access/0: 5 is no access to a path"),
        ({"paths": [{"path": "/", "access": ["ioctl_dev"]}]}, "'ioctl_dev' comes with a later version than 3"),
        ({"abi": 2, "paths": [{"path": "/", "access": ["truncate"]}]}, "comes with a later version than 2"),
        ({"paths": [{"path": "/", "access": ["read"], "optional": 1}]}, "/paths/0/optional: must be true or false"),
        ({"abi": 0, "paths": []}, "/abi: must be a version of Landlock, 1 to 7"),
        ({"abi": True, "paths": []}, "/abi: must be a version of Landlock, 1 to 7"),
        ({"ports": [{"port": 65536, "access": ["bind"]}]}, "/ports/0/port: must be a TCP port"),
        ({"ports": [{"port": 1, "access": ["read"]}]}, "/ports/0/access/0: 'read' is neither bind nor connect"),
        ({"ports": [{"port": 1, "access": []}]}, "/ports/0/access: must name bind or connect"),
        ({"scopes": ["x"]}, "/scopes/0: 'x' is not one of abstract-unix-socket, signal"),
    ],
)
def test_rules_that_are_none(rules: Any, words: str) -> None:
    with pytest.raises(SpecError) as caught:
        compiled(rules)
    assert words in str(caught.value)
    assert AT in str(caught.value)
