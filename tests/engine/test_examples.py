"""The examples of the documentation are run, on host: and on an image."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from enginekit import Person

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))

# What each prints, at least.
WANTED = {
    "01_run.py": ["3", "hello from root", "a warning"],
    "02_limits.py": ["42", "10000", "ended: the container of"],
    "03_container.py": ["running", "hello", "137", "exited"],
    "04_asyncio.py": ["[0, 1, 4, 9, 16, 25, 36, 49, 64, 81]", "cancelled", "inside"],
    "05_errors.py": ["not found: True", "Not A Reference |", "would cover /proc"],
    "07_copy.py": [
        "unchanged: True",
        "would copy 2 blobs",
        "copied 1 image thrice",
        "no registry there: connection refused",
    ],
    "06_images.py": [
        "added config Env.MODE",
        "removed file /srv/site/index.html",
        "[b'srv/', b'srv/site/']",
        "['docker.io/library/site:1'] True []",
    ],
}


def test_every_example_has_its_test() -> None:
    assert {path.name for path in EXAMPLES} == set(WANTED)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
@pytest.mark.parametrize("kind", ["host:", "image"])
def test_example(example: Path, kind: str, person: Person, image: str) -> None:
    # A copy, so that a person who may not enter the checkout can read it.
    copy = person.folder / example.name
    copy.write_bytes(example.read_bytes())
    done = person.run([person.python, str(copy), image if kind == "image" else kind])
    assert done.stderr == b"", done.stderr.decode()
    text = done.stdout.decode()
    for words in WANTED[example.name]:
        assert words in text, text
