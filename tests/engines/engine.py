"""What all engines in boxes have in common: a script runs with runc, then with ours, and leaves nothing."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from transcript import Broken, Recorder, differences

if TYPE_CHECKING:
    from collections.abc import Callable

    from enginebox import Box

    Script = Callable[[Recorder], None]


class Engine:
    """An engine in ``box`` that runs containers with ``runtime``; each subclass says how."""

    daemons: tuple[str, ...] = ()
    """Beginnings of the command lines of what runs as long as the engine does."""
    places: tuple[str, ...] = ()
    """Parts of the mount points that containers of the engine have."""
    states: tuple[str, ...] = ()
    """Shell patterns of the directories that containers have for as long as they exist."""

    def __init__(self, box: Box, runtime: str) -> None:
        self.box = box
        self.runtime = runtime
        self.is_runc = os.path.basename(runtime) == "runc"

    def recorder(self) -> Recorder:
        """A client that records."""
        raise NotImplementedError

    def containers(self) -> list[str]:
        """All containers there are."""
        raise NotImplementedError

    def clear(self) -> None:
        """Remove all containers, whatever state a broken script left them in."""
        raise NotImplementedError

    def leftovers(self) -> list[str]:
        left = [
            f"process {pid} {args}" for pid, args in self.box.processes().items() if not args.startswith(self.daemons)
        ]
        left += [f"mount {place}" for place in self.box.mounts() if any(part in place for part in self.places)]
        left += [f"cgroup {group}" for group in self.box.cgroups() if self.is_containers(os.path.basename(group))]
        state = self.box.run("sh", "-c", f"ls -d {' '.join(self.states)} 2>/dev/null || true")
        return left + [f"state {path}" for path in state.split()]

    def is_containers(self, group: str) -> bool:
        """Whether a cgroup of that name belongs to a container. Parents that were named stay with runc, go with ours."""
        return len(group) == 64

    def check_nothing_left(self) -> None:
        """After a script: no container, no process of one, no mount, no cgroup, no state. Raises Broken."""
        end = time.monotonic() + 10
        while found := [*(f"container {name}" for name in self.containers()), *self.leftovers()]:
            if time.monotonic() > end:
                raise Broken(f"left behind with {self.runtime}: {'; '.join(found)}")
            time.sleep(0.1)


def same_with_each(engines: dict[str, Engine], script: Script) -> None:
    """Run a script with every engine, runc's first; raise Broken when they do not say the same."""
    transcripts = []
    for engine in engines.values():
        recorder = engine.recorder()
        try:
            script(recorder)
        except Broken as error:
            raise Broken(f"with {engine.runtime}: {error}") from None
        finally:
            recorder.close()
            engine.clear()
        engine.check_nothing_left()
        transcripts.append(recorder.steps)
    found = differences(*transcripts)
    if found:
        raise Broken(f"runc and {engine.runtime} differ:\n{found}")


def scripts(names: dict[str, object]) -> list[Script]:
    """The scripts of a module, as it has them."""
    return [value for name, value in names.items() if name.startswith("script_") and callable(value)]


def title(script: Script) -> str:
    return script.__name__.removeprefix("script_")
