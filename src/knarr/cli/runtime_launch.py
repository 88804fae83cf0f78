"""Start ``knarr-runtime`` inside an interpreter that runs as ``python -I -S`` (hot).

The installed launcher (bin/launcher.c) imports this module and calls ``launch``; run as a script it does the
same from any tree: ``python -I -S src/knarr/cli/runtime_launch.py``. Kept apart from the command line itself
because a file run as ``__main__`` is compiled anew at every start.
"""

from __future__ import annotations

import posix
import sys


def launch(told: int = -1) -> None:
    """Run the command line of knarr-runtime and end the process with its exit code.

    ``told`` is the socket of a ``start`` that it has begun (bin/verbs.c), -1 without one.

    Leaves by ``posix._exit``: taking the interpreter apart costs 1.4 ms of 9, and nothing here has threads,
    atexit functions or unflushed files other than the two flushed below.
    """
    from knarr.cli.runtime_main import main

    code = main(told=told)
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:  # None when the caller closed the descriptor
                stream.flush()
    except OSError as error:
        posix.write(2, f"knarr-runtime: cannot write the output: {posix.strerror(error.errno or 0).lower()}\n".encode())
        code = code or 1
    posix._exit(code)  # noqa: SLF001  # os's own name for it


if __name__ == "__main__":
    sys.path.append(__file__.removesuffix("/knarr/cli/runtime_launch.py"))
    launch()
