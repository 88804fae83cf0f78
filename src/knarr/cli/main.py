"""``knarr``, the command for people. Kept small: nothing is loaded before Ctrl-C can be told in one line."""

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: "Sequence[str] | None" = None) -> int:
    """Run one command line. With ``argv`` returns the exit code; without, uses the process' own and ends it."""
    try:
        if argv is None:
            from knarr.kernel.heap import one_heap

            one_heap()
        from knarr.cli.command import run_command

        code = run_command(sys.argv[1:] if argv is None else argv)
    except KeyboardInterrupt:
        os.write(2, b"knarr: interrupted\n")
        code = 130
    if argv is None:
        # Taking the interpreter apart costs milliseconds, and a second Ctrl-C would find it half gone.
        os._exit(code)
    return code


if __name__ == "__main__":
    main()
