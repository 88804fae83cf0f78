"""The few functions of ``os.path`` that hot modules have of their own say what their namesakes say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import knarr
from knarr.base import paths

PATHS = st.lists(st.sampled_from(["a", "bc", ".", "..", "", "/", "//", "é", "\udcff"]), max_size=8).map("/".join)


@given(PATHS)
def test_dirname_and_abspath(path: str) -> None:
    assert paths.dirname(path) == os.path.dirname(path)
    assert paths.abspath(path) == os.path.abspath(path)


@given(PATHS)
def test_names_as_the_kernel_has_them(path: str) -> None:
    assert paths.fsencode(path) == os.fsencode(path)
    assert paths.fsdecode(os.fsencode(path)) == path
    assert paths.fsencode(Path("x")) == b"x"


def test_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "folder").symlink_to("/etc")
    for name in (".", "file", "dangling", "folder", "absent", "file/x", "a\0b"):
        path = f"{tmp_path}/{name}"
        for ours in (paths.exists, paths.lexists, paths.isdir):
            assert ours(path) == getattr(os.path, ours.__name__)(path), (ours, name)


@pytest.mark.parametrize("before", ["", "import os; os.environ['KNARR_X'] = 'new'; "])
def test_variables_with_and_without_os(before: str) -> None:
    script = f"import sys; sys.path.append(sys.argv[1]); {before}from knarr.base.paths import variable as v; "
    script += "sys.stdout.buffer.write(repr((v('KNARR_X'), v('KNARR_Y'), 'os' in sys.modules)).encode())"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-X", "utf8", "-c", script, str(Path(knarr.__file__).parents[1])],
        env={"KNARR_X": "é\udcff"},
        capture_output=True,
        check=True,
    )
    assert done.stdout.decode() == repr(("new" if before else "é\udcff", "", bool(before)))
