"""``knarr-runtime create`` (hot)."""

from __future__ import annotations

from knarr.cli.runtime import making
from knarr.runtime.create import Stdio, undo
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
    making.check_terminal(config["process"], options, detach=True, document="config.json")
    making.add_listen_fds(config["process"])
    create, _ = making.makers(config)
    console = making.console_socket(options["console-socket"]) if options.get("console-socket") else None
    pidfd_socket = making.pidfd_socket(options)
    with Signals() as signals:
        created = create(
            context.root,
            operands[0],
            bundle,
            making.with_notify(config, context.root, operands[0]),
            io=Stdio(console=console.fileno() if console else -1, preserve=preserve),
            options=making.wishes(options, context),
            raw=raw,
            rootless=context.rootless,
            stop=signals.fd,
        )
        try:
            making.log_findings("config.json", created.plan.warnings, context.log)
            making.write_pid(options, created.pid)
            making.send_pidfd(pidfd_socket, b"standard", created.pidfd)
            making.tell_receiver(config, created.pidfd)
        except BaseException as error:
            undo(created, error)
            raise
    if console is not None:
        console.close()
    created.close()
    return 0
