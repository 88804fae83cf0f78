"""Every input that fuzzing has found a new path with, once more; and the ones that once broke something."""

from __future__ import annotations

import random

import fuzz
import pytest


@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_nothing_in_the_corpus_breaks_it(name: str) -> None:
    files = fuzz.corpus(name)
    assert files
    assert sum(path.stat().st_size for path in files) < 100_000
    chance, known = random.Random(1), fuzz.seeds(name)
    for data in (*known, *(fuzz.mutated(known, chance) for _ in range(200))):
        assert len(data) <= fuzz.MOST
        fuzz.once(name, data)


def test_what_is_not_ours_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(data: bytes) -> None:
        raise IndexError(data)

    monkeypatch.setitem(fuzz.TARGETS, "tar", (broken, [b"x"]))
    with pytest.raises(IndexError):
        fuzz.run_plain("tar", 5)
    assert (fuzz.CACHE / "tar.crash").is_file()
    (fuzz.CACHE / "tar.crash").unlink()
