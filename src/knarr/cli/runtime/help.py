"""The help texts of knarr-runtime (cold: imported when somebody asks)."""

from __future__ import annotations

from knarr.cli.runtime.options import FLAG, GLOBAL, VERBS

# verb -> (operands, what it does)
ABOUT = {
    "create": ("ID", "create a container; its program waits for start"),
    "start": ("ID", "run the program of a created container"),
    "state": ("ID", "print the state of a container as JSON"),
    "kill": ("ID [SIGNAL]", "send a signal to the container's first process (TERM unless given)"),
    "delete": ("ID", "remove a container that is stopped or was never started"),
    "run": ("ID", "create and start a container, wait for its end and remove it"),
    "exec": ("ID COMMAND [ARGUMENT...]", "run a further process in a container"),
    "ps": ("ID [PS-OPTION...]", "print the processes of a container, as ps(1) does (with -ef)"),
    "events": ("ID", "print what a container uses, every five seconds, and when it runs out of memory"),
    "pause": ("ID", "stop all processes of a container where they are"),
    "resume": ("ID", "let the processes of a paused container go on"),
    "update": ("ID", "change the limits of a container"),
    "mounts": (
        "add|remove ID FILE",
        "mount the entries of FILE, as in config.json, or take them away, in a container that runs",
    ),
    "list": ("", "list the containers below the state root"),
    "spec": ("", "write a config.json to start from"),
    "checkpoint": ("ID", "write a running container to a directory with CRIU and remove it"),
    "restore": ("ID", "bring a container back from such a directory"),
    "features": ("", "print what this runtime supports as JSON"),
    "plan": ("BUNDLE", "print what create would do, each step with the config.json field that asks for it"),
}

# option -> (word for its value, what it does); "verb.option" where it differs
OPTIONS = {
    "root": ("DIR", "where the state of containers is kept, on a tmpfs (/run/knarr, or below XDG_RUNTIME_DIR)"),
    "log": ("FILE", "append messages to FILE, or journald:NAME, or syslog:NAME (standard error)"),
    "log-level": ("LEVEL", "error, warning, info or debug (info)"),
    "log-format": ("FORMAT", "text or json (text)"),
    "debug": ("", "log more"),
    "criu": ("PROGRAM", "the criu to use for checkpoint and restore (criu)"),
    "rootless": ("WHEN", "do without cgroups that may not be made: true, false or auto (auto)"),
    "systemd-cgroup": ("", "have systemd make the cgroups; cgroupsPath is slice:prefix:name then"),
    "cgroup-manager": ("DRIVER", "who makes the cgroups: cgroupfs, systemd or disabled (cgroupfs)"),
    "version": ("", "print the version"),
    "help": ("", "print this"),
    "bundle": ("DIR", "directory with config.json (the current one)"),
    "config": ("FILE", "read this instead of the bundle's config.json"),
    "pidfd-socket": ("PATH", "socket that receives a descriptor of the process (pidfd_open(2))"),
    "no-subreaper": ("", "leave processes without a parent to this machine's init"),
    "keep": ("", "do not remove the container when it has ended"),
    "regex": ("", "ID is a regular expression: all containers whose id it matches"),
    "cgroup": (
        "[CONTROLLER:]PATH",
        "a cgroup below the container's own; may be given again on v1",
    ),
    "file": ("FILE", "write this file (config.json)"),
    "console-socket": ("PATH", "socket that receives the terminal's master descriptor"),
    "pid-file": ("FILE", "write the process id there"),
    "no-pivot": ("", "enter the root by moving a mount instead of pivot_root (for a root on initramfs)"),
    "no-new-keyring": ("", "keep the caller's session keyring"),
    "preserve-fds": ("N", "hand down N descriptors after standard error, besides those of LISTEN_FDS (0)"),
    "all": ("", "signal every process of the container"),
    "force": ("", "kill it first if it runs; no error if it does not exist"),
    "detach": ("", "return as soon as the program runs"),
    "cwd": ("DIR", "working directory in the container"),
    "env": ("NAME=VALUE", "set a variable; may be given again"),
    "tty": ("", "give the process a terminal"),
    "user": ("UID[:GID]", "run as this user"),
    "additional-gids": ("GID", "a further group; may be given again"),
    "process": ("FILE", "read the process from a JSON file"),
    "process-label": ("LABEL", "SELinux label of the process"),
    "apparmor": ("PROFILE", "AppArmor profile of the process"),
    "no-new-privs": ("", "the process may not gain privileges"),
    "cap": ("CAP", "add a capability; may be given again"),
    "ignore-paused": ("", "in a paused container, too; the process waits until it is resumed"),
    "format": ("FORMAT", "table or json (table)"),
    "plan.format": ("FORMAT", "text or json (text)"),
    "image-path": ("DIR", "directory of the checkpoint (./checkpoint)"),
    "work-path": ("DIR", "directory for CRIU's log and working files (the image path)"),
    "parent-path": ("DIR", "an earlier pre-dump, relative to the image path"),
    "leave-running": ("", "let the container go on"),
    "pre-dump": ("", "write memory only and go on; a later checkpoint writes what has changed"),
    "tcp-established": ("", "keep open TCP connections"),
    "tcp-close": ("", "restore TCP connections that were open as closed ones"),
    "network-lock": ("METHOD", "how packets are held back meanwhile: iptables, nftables or skip (iptables)"),
    "tcp-skip-in-flight": ("", "leave out TCP connections that are not established yet"),
    "ext-unix-sk": ("", "allow Unix sockets whose other end is outside"),
    "shell-job": ("", "allow a terminal that is the caller's"),
    "lazy-pages": ("", "send memory when it is asked for (userfaultfd)"),
    "status-fd": ("FD", "descriptor that gets a NUL byte when the server of lazy pages is ready"),
    "page-server": ("ADDRESS:PORT", "send memory to a page server of CRIU's"),
    "file-locks": ("", "keep file locks"),
    "link-remap": ("", "give files that have no name any more one for the time being"),
    "manage-cgroups-mode": ("MODE", "what CRIU does about cgroups: soft, full, strict or ignore (soft)"),
    "empty-ns": ("KIND", "leave out what is in this namespace; only network, for which it is always so"),
    "auto-dedup": ("", "remove from parent images what a newer one has"),
    "lsm-profile": ("TYPE:NAME", "apparmor or selinux label for the restored processes"),
    "lsm-mount-context": ("CONTEXT", "SELinux context for the restored mounts"),
    "quiet": ("", "print ids only"),
    "interval": ("TIME", "time between two statistics (5s)"),
    "stats": ("", "print the statistics once"),
    "resources": (
        "FILE",
        "JSON file with what is to change, as in linux.resources (-: standard input)",
    ),
    "memory": ("SIZE", "limit of memory, such as 512m, in bytes without a unit; -1: none"),
    "memory-swap": ("SIZE", "limit of memory and swap together; -1: none"),
    "memory-reservation": ("SIZE", "what it may keep of its memory when memory is short"),
    "kernel-memory": ("SIZE", "ignored with a warning, as in runc: kernels no longer have it"),
    "kernel-memory-tcp": ("SIZE", "ignored with a warning, as in runc: kernels no longer have it"),
    "cpu-share": ("N", "weight against others (2 to 262144)"),
    "cpu-quota": ("USEC", "processor time in each period; -1: no limit"),
    "cpu-period": ("USEC", "length of a period"),
    "cpu-burst": ("USEC", "time saved up from earlier periods it may use besides"),
    "cpu-idle": ("0|1", "1: run only when nobody else wants to"),
    "cpu-rt-period": ("USEC", "length of a period of real-time processes (cgroup v1)"),
    "cpu-rt-runtime": ("USEC", "time of real-time processes in each period (cgroup v1)"),
    "cpuset-cpus": ("LIST", "processors it may use, such as 0-2,5"),
    "cpuset-mems": ("LIST", "memory nodes it may use"),
    "pids-limit": ("N", "most processes and threads; -1: no limit"),
    "blkio-weight": ("N", "weight of its input and output against others (10 to 1000)"),
    "l3-cache-schema": ("SCHEMA", "shares of the L3 cache (Intel RDT)"),
    "mem-bw-schema": ("SCHEMA", "memory bandwidth (Intel RDT)"),
    "spec.rootless": ("", "for a container that an ordinary user runs"),
    "id": ("ID", "the container id to plan for"),
}


def text(verb: str = "") -> str:
    """The help of a verb, or of the whole command."""
    if not verb:
        width = max(len(name) for name in VERBS)
        verbs = "\n".join(f"  {name.ljust(width)}  {ABOUT[name][1]}" for name in VERBS)
        return (
            "Usage: knarr-runtime [OPTION...] COMMAND [OPTION...] [OPERAND...]\n\n"
            "An OCI runtime with the command line of runc.\n\n"
            f"Commands:\n{verbs}\n\nOptions:\n{_options(GLOBAL, '')}\n\n"
            "knarr-runtime COMMAND --help tells more.\n"
        )
    operands, about = ABOUT[verb]
    table = (*VERBS[verb][0], ("help", "h", FLAG))
    words = " ".join(word for word in ("knarr-runtime", verb, "[OPTION...]", operands) if word)
    return f"Usage: {words}\n\n{about[0].upper()}{about[1:]}.\n\nOptions:\n{_options(table, verb)}\n"


def _options(table: tuple[tuple[str, str, str], ...], verb: str) -> str:
    lines = []
    for long, short, kind in table:
        value, about = OPTIONS.get(f"{verb}.{long}") or OPTIONS[long]
        name = f"--{long}" if kind == FLAG else f"--{long} {value}"
        lines.append((f"{f'-{short}, ' if short else '    '}{name}", about))
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"  {name.ljust(width)}  {about}" for name, about in lines)
