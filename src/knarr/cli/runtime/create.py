"""``knarr-runtime create`` (hot)."""

from __future__ import annotations

from knarr.cli.runtime import making
from knarr.plan.container import Options
from knarr.runtime.create import Stdio, create, undo
from knarr.runtime.foreground import Signals

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from knarr.cli.runtime.command import Context


def run(options: dict[str, Any], operands: list[str], context: Context) -> int:
    """Create a container that waits for its start."""
    preserve = making.preserved(options)
    bundle, config, raw = making.read_bundle(options)
    making.warn(config, context.log)
    making.check_terminal(config["process"], options, detach=True)
    making.add_listen_fds(config["process"])
    console = making.console_socket(options["console-socket"]) if options.get("console-socket") else None
    wishes = Options(no_pivot=bool(options.get("no-pivot")), no_new_keyring=bool(options.get("no-new-keyring")))
    with Signals() as signals:
        created = create(
            context.root,
            operands[0],
            bundle,
            config,
            io=Stdio(console=console.fileno() if console else -1, preserve=preserve),
            options=wishes,
            raw=raw,
            rootless=context.rootless,
            stop=signals.fd,
        )
        try:
            making.write_pid(options, created.pid)
        except BaseException as error:
            undo(created, error)
            raise
    if console is not None:
        console.close()
    created.close()
    return 0
