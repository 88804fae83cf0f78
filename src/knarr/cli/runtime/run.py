"""``knarr-runtime run``: create, start, stay with it, remove it (hot)."""

from __future__ import annotations

from knarr.base.errors import Interrupted
from knarr.cli.runtime import making
from knarr.plan.namespaces import shares_pids
from knarr.runtime.create import Stdio, undo
from knarr.runtime.foreground import Signals, Terminal, adopt_orphans, attend

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from knarr.cli.runtime.command import Context
    from knarr.runtime.create import Created


def run(options: dict[str, Any], operands: list[str], context: Context) -> int:
    """Run a container; the exit code is its program's, 128 + signal when a signal ended it."""
    preserve = making.preserved(options)
    detach = bool(options.get("detach"))
    bundle, config, raw = making.read_bundle(options)
    making.warn(config, context.log)
    terminal = bool(config["process"].get("terminal"))
    making.check_terminal(config["process"], options, detach=detach, document="config.json")
    making.add_listen_fds(config["process"])
    _, run_container = making.makers(config)
    own = Terminal() if terminal and not detach else None
    console = making.console_socket(options["console-socket"]) if options.get("console-socket") else None
    slot = console.fileno() if console else own.slot if own else -1
    pidfd_socket = making.pidfd_socket(options)
    adopting = not detach and not options.get("no-subreaper") and shares_pids(config)
    if adopting:
        adopt_orphans()
    try:
        with Signals() as signals:
            created = run_container(
                context.root,
                operands[0],
                bundle,
                making.with_notify(config, context.root, operands[0]),
                io=Stdio(console=slot, preserve=preserve),
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
                if detach:
                    if created.notify is not None:
                        _until_ready(created, signals.fd)
                    created.close()
                    return 0
                code = attend(
                    created.pidfd,
                    signals,
                    own.master() if own else -1,
                    orphans_of=created.pid if adopting else 0,
                    notify=created.notify,
                )
            except BaseException as error:
                undo(created, error)
                raise
            if options.get("keep"):
                created.close()
                return code
            for warning in created.delete():
                context.log.warning(warning)
            return code
    finally:
        if own is not None:
            own.close()
        if console is not None:
            console.close()


def _until_ready(created: Created, stop: int) -> None:
    """Stay until the container tells that it is ready, or has ended. Raises Interrupted."""
    if created.notify is not None:
        created.notify.main = created.pid
        if not created.notify.wait(created.pidfd, stop):
            raise Interrupted("interrupted before the container was ready")
