"""``knarr-runtime exec`` (hot)."""

from __future__ import annotations

import posix

from knarr.base import fastjson
from knarr.base.errors import SpecError, SpecFinding, UsageError
from knarr.base.files import read_file
from knarr.cli.runtime import making
from knarr.runtime import record
from knarr.runtime.create import Stdio
from knarr.runtime.foreground import Signals, Terminal, attend
from knarr.spec.validate import capability_warnings, process_findings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from knarr.cli.runtime.command import Context

_LARGEST_ID = (1 << 32) - 2


def run(options: dict[str, Any], operands: list[str], context: Context) -> int:
    """Run a further process in a container; the exit code is its own unless --detach is given."""
    preserve = making.preserved(options)
    detach = bool(options.get("detach"))
    id, command = operands[0], operands[1:]
    process = _process(options, id, command, context)
    document = options.get("process") or "process"
    making.log_findings(document, capability_warnings(process), context.log)
    making.check_terminal(process, options, detach=detach)
    making.add_listen_fds(process)
    own = Terminal() if process.get("terminal") and not detach else None
    console = making.console_socket(options["console-socket"]) if options.get("console-socket") else None
    pidfd_socket = making.pidfd_socket(options)
    slot = console.fileno() if console else own.slot if own else -1
    try:
        with Signals() as signals:
            made = making.executor(context.root, id)(
                context.root,
                id,
                process,
                io=Stdio(console=slot, preserve=preserve),
                ignore_paused=bool(options.get("ignore-paused")),
                cgroups=options.get("cgroup"),
                stop=signals.fd,
            )
            try:
                vain = [SpecFinding(each.pointer.removeprefix("/process"), each.why) for each in made.plan.warnings]
                making.log_findings(document, vain, context.log)
                making.write_pid(options, made.pid)
                making.send_pidfd(pidfd_socket, b"setns", made.pidfd)
                if detach:
                    made.close()
                    return 0
                code = attend(made.pidfd, signals, own.master() if own else -1)
            except BaseException:
                made.undo()
                raise
            made.close()
            return code
    finally:
        if own is not None:
            own.close()
        if console is not None:
            console.close()


def _process(options: dict[str, Any], id: str, command: list[str], context: Context) -> dict[str, Any]:
    """The process document: the file of --process, or the container's own with what the options change."""
    if options.get("process"):
        if command:
            raise UsageError("--process brings the command, so none may follow the container's id")
        document = fastjson.loads(read_file(options["process"], 16 << 20), options["process"])
        where = options["process"]
    else:
        if not command:
            raise UsageError("exec needs a command, or --process FILE", hint="see knarr-runtime exec --help")
        fd = record.open_container(context.root, id)
        try:
            document = record.config(fd)["process"]
        finally:
            posix.close(fd)
        document["args"] = command
        document["terminal"] = False
        document.pop("consoleSize", None)
        where = "process"
    _change(document, options)
    findings = process_findings(document)
    if findings:
        raise SpecError(where, findings)
    process: dict[str, Any] = document
    return process


def _change(process: Any, options: dict[str, Any]) -> None:
    """Put what the options say over the document."""
    if type(process) is not dict:
        return  # validation says so
    if "tty" in options:
        process["terminal"] = options["tty"]
    if options.get("cwd"):
        process["cwd"] = options["cwd"]
    if options.get("env"):
        names = {entry.partition("=")[0] for entry in options["env"]}
        kept = [entry for entry in process.get("env") or () if entry.partition("=")[0] not in names]
        process["env"] = [*kept, *options["env"]]
    if options.get("apparmor"):
        process["apparmorProfile"] = options["apparmor"]
    if options.get("process-label"):
        process["selinuxLabel"] = options["process-label"]
    if "no-new-privs" in options:
        process["noNewPrivileges"] = options["no-new-privs"]
    if options.get("user"):
        uid, colon, gid = options["user"].partition(":")
        user = dict(process.get("user") or {})
        user["uid"] = _id("user", uid)
        if colon:
            user["gid"] = _id("group", gid)
        process["user"] = user
    if options.get("additional-gids"):
        user = dict(process.get("user") or {})
        added = [_id("group", gid) for entry in options["additional-gids"] for gid in entry.split(",")]
        user["additionalGids"] = list(dict.fromkeys([*(user.get("additionalGids") or ()), *added]))
        process["user"] = user
    if options.get("cap"):
        sets = dict(process.get("capabilities") or {})
        for name in ("bounding", "effective", "permitted"):
            sets[name] = list(dict.fromkeys([*(sets.get(name) or ()), *options["cap"]]))
        process["capabilities"] = sets


def _id(kind: str, text: str) -> int:
    """A numeric id and nothing else (docs/security.md I13). Raises UsageError."""
    if text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= _LARGEST_ID:
        return int(text)
    raise UsageError(f"{kind} {text!r} is not a number from 0 to {_LARGEST_ID}")
