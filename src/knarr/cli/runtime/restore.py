"""``knarr-runtime restore`` (cold)."""

from __future__ import annotations

from knarr.cli.runtime import making
from knarr.cli.runtime.checkpoint import criu_options
from knarr.plan.namespaces import shares_pids
from knarr.runtime.foreground import Signals, Terminal, adopt_orphans, attend
from knarr.runtime.restore import restore

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from knarr.cli.runtime.command import Context


def run(options: dict[str, Any], operands: list[str], context: Context) -> int:
    """Bring a container back; in the foreground the exit code is its program's, as with ``run``."""
    detach = bool(options.get("detach"))
    wanted = criu_options(options, context)
    bundle, config, _ = making.read_bundle(options)
    terminal = bool(config["process"].get("terminal"))
    making.check_terminal(config["process"], options, detach=detach, document="config.json")
    if options.get("no-pivot"):
        context.log.warning("--no-pivot is of no use to restore: it is CRIU that makes the root")
    own = Terminal() if terminal and not detach else None
    console = making.console_socket(options["console-socket"]) if options.get("console-socket") else None
    slot = console.fileno() if console else own.slot if own else -1
    adopting = not detach and not options.get("no-subreaper") and shares_pids(config)
    if adopting:
        adopt_orphans()
    try:
        with Signals() as signals:
            restored = restore(
                context.root,
                operands[0],
                bundle,
                config,
                wanted,
                console=slot,
                manager=context.cgroup_manager,
                rootless=context.rootless,
            )
            try:
                making.write_pid(options, restored.pid)
                if detach:
                    restored.close()
                    return 0
                orphans_of = restored.pid if adopting else 0
                code = attend(restored.pidfd, signals, own.master() if own else -1, orphans_of=orphans_of)
            except BaseException as error:
                restored.undo(error)
                raise
            for warning in restored.delete():
                context.log.warning(warning)
            return code
    finally:
        if own is not None:
            own.close()
        if console is not None:
            console.close()
