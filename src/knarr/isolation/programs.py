"""What a program of the host's needs to be started in an empty root: its loader and libraries (cold)."""

from __future__ import annotations

import os

from knarr.layer.elf import Elf, Finder


def libraries(path: str, *later: str) -> tuple[tuple[str, str], ...] | None:
    """What the program's loader will open, as (path inside, file) pairs, the loader first; empty for a static one.

    Found without running the loader, and without ld.so's cache where that does. None when a library is missing.
    ``later`` are names of what it opens as it runs, no matter whether they are there.
    """
    program = Finder({}).elf(path)
    if program is None or not program.interpreter:
        return ()
    found = _needed(path, program, Finder({})) or _needed(path, program, Finder())
    places = [Finder().find(name, program, os.path.dirname(path), []) for name in later]
    found = found and (*found, *((place, place) for place in places if place))
    return None if found is None else ((program.interpreter, program.interpreter), *found)


def _needed(path: str, program: Elf, finder: Finder) -> tuple[tuple[str, str], ...] | None:
    waiting = [(name, program, os.path.dirname(path)) for name in program.needed]
    found: dict[str, str] = {}
    while waiting:
        name, user, origin = waiting.pop()
        if name in found or name == os.path.basename(program.interpreter):
            continue
        place = finder.find(name, user, origin, [(program, os.path.dirname(path))])
        library = finder.elf(place) if place else None
        if library is None:
            return None
        found[name] = place
        waiting += [(each, library, os.path.dirname(place)) for each in library.needed]
    return tuple((place, place) for place in found.values())
