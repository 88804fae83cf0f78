"""Unpack, change, repack as root, as an ordinary user, and as one with subordinate ids: owners and modes survive."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from imagekit import flat, layout
from tarbuilder import d, f, s, x

from knarr.engine.imaging.image import Image

sys.path.append(str(Path(__file__).parents[1] / "engine"))
import enginekit  # it lies beside the engine's tests  # pyright: ignore[reportMissingImports]

if TYPE_CHECKING:
    from collections.abc import Iterator

    from enginekit import Person

CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")
LAYER = [
    d("./", 0o755), d("etc"), f("etc/a", b"a" * 100), f("etc/theirs", b"t", uid=33, gid=33, mode=0o640),
    d("private", 0o700, uid=7, gid=7), f("private/x", b"x", uid=8, gid=9, mode=0o4711), s("link", "etc/a"), d("gone"), f("gone/y"),
]  # fmt: skip


@pytest.fixture(params=enginekit.kinds())
def person(request: pytest.FixtureRequest) -> Iterator[Person]:
    folder = enginekit.new_folder()
    try:
        yield enginekit.Person(request.param, folder)
        assert enginekit.leftovers(folder) == []
    finally:
        enginekit.remove_folder(folder)


def owners(image: Image) -> dict[str, tuple[int, int, int]]:
    return {path: (node.entry.uid, node.entry.gid, node.entry.mode) for path, node in flat(image).items() if path}


@pytest.mark.parametrize("options", [[], ["--strict"]], ids=["fast", "strict"])
def test_repack(person: Person, options: list[str]) -> None:
    ref = layout(person.folder / "layout", LAYER)
    before = owners(Image.open(ref))
    done = person.knarr("image", "unpack", "--bare", ref, "out")
    assert done.returncode == 0, done.stderr
    done = person.knarr("image", "repack", *options, "out", "same:1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode().strip() == Image.open(ref).digest, "nothing changed, and a layer was made"

    script = "import os, shutil; open('out/etc/a', 'ab').write(b'more'); open('out/new', 'w').close(); shutil.rmtree('out/gone')"
    assert person.python_script(script).returncode == 0
    done = person.knarr("image", "repack", *options, "out", f"oci:{person.folder}/made:1")
    assert done.returncode == 0, done.stderr
    made = Image.open(f"oci:{person.folder}/made:1")
    expected = {path: facts for path, facts in before.items() if not path.startswith("gone")}
    new = owners(made)
    assert new.pop("new")[:2] == (0, 0)
    assert new == expected
    changed = {entry.name.decode().rstrip("/") for entry in made.layers[-1].entries()}
    assert {".wh.gone", "etc/a", "new"} <= changed <= {".wh.gone", "etc/a", "new", "."}


def test_owned_files_that_change_keep_their_owner(person: Person) -> None:
    """A file of the image's user 33, changed by whoever may: root, its only owner, or through the namespace."""
    ref = layout(person.folder / "layout", [d("etc"), f("etc/theirs", b"t", uid=33, gid=34)])
    assert person.knarr("image", "unpack", "--bare", ref, "out").returncode == 0
    if person.kind == "nobody-subids":
        pytest.skip("this user's own hands cannot change a file of a subordinate id")
    assert person.python_script("open('out/etc/theirs', 'ab').write(b'more')").returncode == 0
    assert person.knarr("image", "repack", "out", f"oci:{person.folder}/made:1").returncode == 0
    made = Image.open(f"oci:{person.folder}/made:1")
    assert owners(made)["etc/theirs"][:2] == (33, 34)


def test_capabilities_come_back_as_they_were(person: Person) -> None:
    layer = [x(("SCHILY.xattr.security.capability", CAPABILITY)), f("cap", b"1"), f("other")]
    ref = layout(person.folder / "layout", layer)
    done = person.knarr("image", "unpack", "--bare", ref, "out")
    assert done.returncode == 0, done.stderr
    if b"left out" in done.stderr:
        pytest.skip("this user may not set capabilities, as the warning said")
    assert (
        person.knarr("image", "repack", "--base", ref, "out", "same:1").stdout.decode().strip()
        == Image.open(ref).digest
    )
