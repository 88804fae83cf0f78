"""``knarr-runtime run``: create, start, stay with it, remove it (hot)."""

from __future__ import annotations

from knarr.cli.runtime import making
from knarr.plan.container import Options
from knarr.runtime.create import Stdio, undo
from knarr.runtime.create import run as run_container
from knarr.runtime.foreground import Signals, Terminal, attend

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from knarr.cli.runtime.command import Context


def run(options: dict[str, Any], operands: list[str], context: Context) -> int:
    """Run a container; the exit code is its program's, 128 + signal when a signal ended it."""
    preserve = making.preserved(options)
    detach = bool(options.get("detach"))
    bundle, config, raw = making.read_bundle(options)
    making.warn(config, context.log)
    terminal = bool(config["process"].get("terminal"))
    making.check_terminal(config["process"], options, detach=detach)
    making.add_listen_fds(config["process"])
    own = Terminal() if terminal and not detach else None
    console = making.console_socket(options["console-socket"]) if options.get("console-socket") else None
    slot = console.fileno() if console else own.slot if own else -1
    wishes = Options(no_pivot=bool(options.get("no-pivot")), no_new_keyring=bool(options.get("no-new-keyring")))
    try:
        with Signals() as signals:
            created = run_container(
                context.root,
                operands[0],
                bundle,
                config,
                io=Stdio(console=slot, preserve=preserve),
                options=wishes,
                raw=raw,
                rootless=context.rootless,
                stop=signals.fd,
            )
            try:
                making.write_pid(options, created.pid)
                if detach:
                    created.close()
                    return 0
                code = attend(created.pidfd, signals, own.master() if own else -1)
            except BaseException as error:
                undo(created, error)
                raise
            for warning in created.delete():
                context.log.warning(warning)
            return code
    finally:
        if own is not None:
            own.close()
        if console is not None:
            console.close()
