"""Why an operation failed, in one sentence (cold, pure).

``init_error`` turns the init's (operation, errno, detail) into the exception to raise; for programs that cannot be
executed it reads the file's first bytes, which the init sent along, and names the missing interpreter, the wrong
machine or the Windows line ending instead of "no such file or directory". Other tools look for the kernel's own words
in runtimes' messages ("no such file or directory", "permission denied", "executable file not found"): they stay.
"""

from __future__ import annotations

import os
import stat
from errno import (
    E2BIG,
    EACCES,
    EBUSY,
    EINVAL,
    ELOOP,
    ENOENT,
    ENOEXEC,
    ENOMEM,
    ENOMSG,
    ENOSPC,
    ENOSYS,
    ENOTDIR,
    EPERM,
    ETXTBSY,
)
from struct import error as struct_error
from struct import unpack_from

from knarr.base.errors import CommandNotExecutable, CommandNotFound, HookError, InitError, KnarrError, SafetyViolation

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

ST_NOEXEC = 8
PT_INTERP = 3
# e_machine of ELF -> name as uname has it
MACHINES = {
    2: "sparc",
    3: "i386",
    8: "mips",
    20: "ppc",
    21: "ppc64",
    22: "s390x",
    40: "arm",
    43: "sparc64",
    62: "x86_64",
    183: "aarch64",
    243: "riscv64",
    258: "loongarch64",
}
_RUNS = {"x86_64": ("x86_64", "i386"), "aarch64": ("aarch64", "arm")}

LANDLOCK_HINT = "its Landlock rules must let it execute and read the program, its loader and libraries"

# kind -> sentence over the operation's named arguments
_DOING = {
    "mount": "mount {fstype} on {target}",
    "bind": "bind {source} on {target}",
    "remount": "remount {target}",
    "unmount": "unmount {target}",
    "open_source": "open mount source {path}",
    "bind_root": "open root directory {path}",
    "open_root": "open root directory {path}",
    "open_ns": "join namespace {path}",
    "setns": "join namespace",
    "clone": "make namespaces",
    "unshare": "make namespaces",
    "join_cgroup": "join cgroup {path}",
    "mkdir": "make directory {path}",
    "mknod": "make device {path}",
    "symlink": "make symbolic link {path}",
    "mask": "mask {path}",
    "readonly": "make {path} read-only",
    "host_mount": "mount {fstype} on {target}",
    "host_mkdir": "make directory {path}",
    "host_chdir": "enter directory {path}",
    "console": "set up the terminal",
    "pivot": "enter the root",
    "cwd": "enter working directory {path}",
    "user": "become user {uid}:{gid}",
    "capabilities": "set the capabilities",
    "bounding": "set the bounding capabilities",
    "seccomp": "load the seccomp filter",
    "no_new_privs": "set no_new_privs",
    "hostname": "set hostname {name}",
    "domainname": "set domainname {name}",
    "rlimit": "set resource limit",
    "proc_write": "write {value} to /proc/{path}",
    "become_root": "become root of the user namespace",
    "hook": "run hook {path}",
    "find_program": "exec {name}",
    "loopback": "bring up the loopback device",
    "open_proc": "open /proc",
    "propagation": "set mount propagation of {path}",
    "wait_start": "wait for the start",
    "user_ns": "make the user namespace",
    "idmap": "show files with the container's ids",
    "cover": "show {path} with the container's ids",
    "root_tree": "attach the root",
    "new_tree": "mount {fstype} from {source}",
    "loop_tree": "mount {fstype} from {source} by loop devices",
    "stand": "stand for what runs in the guest",
    "label": "label {path}",
    "scheduler": "set the scheduling policy",
    "io_priority": "set the I/O priority",
    "cpu_affinity": "set the CPU affinity",
    "memory_policy": "set the memory policy",
    "landlock_create": "make Landlock rules",
    "landlock_path": "make a Landlock rule for {path}",
    "landlock_port": "make a Landlock rule for port {port}",
    "landlock_restrict": "put Landlock rules in force",
}


_NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")


def doing(kind: str, arguments: dict[str, object]) -> str:
    """What the operation was to do, for people; ``arguments`` by name, missing ones are left out."""
    shown = {name: f'"{value}"' if value == "" else value for name, value in arguments.items()}
    if kind == "exec":
        return f'exec "{shown.get("name", "")}"'
    template = _DOING.get(kind)
    if template is None:
        return kind.replace("_", " ")
    if kind == "find_program":
        return f'exec "{shown.get("name", "")}"'
    try:
        return template.format_map(shown)
    except KeyError:
        return template.split(" {")[0]


def init_error(
    kind: str, arguments: dict[str, object], pointer: str, number: int, detail: bytes, *, machine: str = ""
) -> KnarrError:
    """The exception for an operation that failed with errno ``number``; ``arguments``: Op.arguments() or part of it."""
    if kind == "exec" and "name" not in arguments:
        words = arguments.get("argv_env")
        arguments = {**arguments, "name": words[0] if isinstance(words, list) and words else ""}
    what = doing(kind, arguments)
    if kind == "exec" and number == E2BIG:
        where, why = too_long(arguments.get("argv_env"), arguments.get("argc"))
        return CommandNotExecutable(where or "/process/args", what, number, why=why)
    if kind == "hook":
        return hook_error(pointer, str(arguments.get("path", "")), detail, number)
    if kind in ("find_program", "exec"):
        name = str(arguments.get("name", ""))
        why, found = program(name, number, detail, machine or os.uname().machine, search=str(arguments.get("path", "")))
        pointer = pointer if pointer.startswith("/process/args/") else "/process/args/0"
        if pointer == "/process/args/0" and why and number != ENOMEM:
            cls = CommandNotExecutable if found else CommandNotFound
            return cls(pointer, what, number, why=why, hint=_hint(why))
        return InitError(pointer, what, number, why=why)
    if kind == "mount" and detail:
        return InitError(pointer, what, number, why=_mount_trouble(number, detail, str(arguments.get("target", ""))))
    if kind == "cwd" and (detail or number == ENOENT):
        shown = detail.split(b"\0")[0].decode("utf-8", "replace")
        if shown and not shown.startswith("/"):
            return SafetyViolation("working directory", str(arguments.get("path", "")), "it lies outside of the root")
    return InitError(pointer, what, number, hint=_general_hint(kind, number, pointer))


def too_long(words: object, count: object) -> tuple[str, str]:
    """Where and why execve(2) said E2BIG, of arguments and then, from ``count`` on, variables; "" if not known.

    One may have MAX_ARG_STRLEN bytes (32 pages) with its NUL, all of them a quarter of RLIMIT_STACK.
    """
    kernel = os.strerror(E2BIG).lower()
    if not isinstance(words, list) or not isinstance(count, int):
        return "", kernel
    sizes = [len(os.fsencode(word)) + 1 for word in words]
    most = 32 * os.sysconf("SC_PAGE_SIZE")
    for number, size in enumerate(sizes):
        if size > most:
            where = f"args/{number}" if number < count else f"env/{number - count}"
            what = "argument" if number < count else "variable"
            return f"/process/{where}", f"{kernel}: this {what} has {size - 1} bytes, the kernel takes {most - 1}"
    arguments, variables = sum(sizes[:count]), sum(sizes[count:])
    why = (
        f"{kernel}: arguments have {arguments} bytes, variables {variables}, the kernel takes a quarter of RLIMIT_STACK"
    )
    return "/process/env" if variables > arguments else "/process/args", why


def _mount_trouble(number: int, detail: bytes, target: str) -> str:
    """What the kernel said about the options, or which file could not be copied."""
    kernel = os.strerror(number).lower()
    copying, *names = detail.rstrip(b"\0").split(b"\0")
    if copying == b"copy":
        path = "/".join([target.rstrip("/"), *(name.decode("utf-8", "surrogateescape") for name in reversed(names))])
        return f"{kernel}: while {path or '/'} was copied into it"
    # a line each: a letter (e error, w warning, i information), a blank, the words
    said = [line.partition(" ")[2] for line in detail.decode("utf-8", "replace").splitlines()]
    return f"{kernel}: {'; '.join(said)}"


def _general_hint(kind: str, number: int, pointer: str) -> str:
    if pointer.startswith("/annotations/run.oci.seccomp_bpf_data"):
        return "these are not the instructions of a filter as seccomp(2) takes it" if number == EINVAL else ""
    if kind == "setns" and number == EINVAL and pointer:
        return "nobody can enter the user namespace that he is in"
    if kind in ("bind_root", "open_root") and number in (ELOOP, ENOTDIR):
        return "the root must be a real directory, not a symbolic link"
    if kind in ("mount", "bind") and number == ELOOP:
        return "the target must be an ordinary directory, not a symbolic link"
    if kind == "pivot" and number == EINVAL:
        return "pivot_root cannot leave an initramfs: --no-pivot moves the root instead"
    if kind == "rlimit" and number == EPERM:
        return "raising a hard limit needs CAP_SYS_RESOURCE"
    if kind in ("clone", "unshare") and number == EINVAL:
        lacking = [name for name in _NAMESPACES if not os.path.exists(f"/proc/self/ns/{name}")]
        return f"this kernel has no namespaces of type {', '.join(lacking)}" if lacking else ""
    if kind == "mknod" and number == EPERM:
        return "it takes CAP_MKNOD; in a user namespace the host's device is bound instead"
    if kind in ("clone", "unshare") and number == EPERM:
        return "an ordinary user needs a user namespace: add one to linux.namespaces"
    if kind == "user_ns" and number == ENOSPC:
        return "sysctl user.max_user_namespaces limits them"
    if kind == "idmap" and number in (EINVAL, EPERM):
        return "the file system cannot shift ids, or they are shifted already"
    if kind == "join_cgroup":
        from knarr.runtime.cgroup import JOIN_HINTS

        return JOIN_HINTS.get(number, "")
    if kind in ("scheduler", "io_priority") and number == EPERM:
        if kind == "io_priority":
            return "IOPRIO_CLASS_RT takes CAP_SYS_NICE or CAP_SYS_ADMIN"
        # cgroup v1 gives a new group no real-time at all; a deadline is promised for all CPUs or none (sched(7))
        return (
            "a real-time policy or a lower nice takes CAP_SYS_NICE; SCHED_FIFO and SCHED_RR on cgroup v1 also "
            "resources.cpu.realtimeRuntime, SCHED_DEADLINE every CPU of the machine"
        )
    if kind == "scheduler" and number == EBUSY:
        return "the CPUs have no time left to promise"
    if kind == "cpu_affinity" and number == EINVAL:
        return "none of these CPUs is there, or the container's cpuset has none of them"
    if kind == "memory_policy":
        if number == ENOSYS:
            return "this kernel knows no memory nodes (CONFIG_NUMA)"
        if number == EINVAL:
            return "this kernel does not know the mode, or none of the nodes is there and in the container's cpuset"
    if kind == "landlock_path" and number == ENOMSG:
        return "it is a file, and the rule names kinds of access to a directory only"
    if kind == "landlock_restrict" and number == E2BIG:
        return "the kernel stacks sixteen of them, and as many are in force around this container"
    if kind == "seccomp" and number == EBUSY:
        return "a filter above this one has a listener, and the kernel has one for a process"
    if kind == "seccomp" and number == EINVAL:
        return "this kernel does not know one of linux.seccomp.flags; WAIT_KILLABLE_RECV came with Linux 5.19"
    if kind == "open_ns" and number == EINVAL:
        return "it is not a namespace of that type"
    return ""


def _hint(why: str) -> str:
    if "execute permission" in why:
        return "chmod +x it in the image"
    if "carriage return" in why:
        return "save it with Unix line endings"
    if "this machine is" in why:
        return "use an image for this platform"
    if "a mount with noexec" in why:
        return "leave noexec out of that mount's options"
    if "is a symbolic link to" in why:
        return "correct the link, or add what it points to"
    if "needs the interpreter" in why:
        return "add it to the image, or change the first line"
    if "needs the loader" in why:
        library = "musl, as Alpine has it" if "/ld-musl-" in why else "a C library"
        return f"it was built for {library}, and the image has none: use another image, or link it statically"
    if "nor a script that starts with" in why:
        return "give it a first line such as #!/bin/sh"
    return ""


def hook_error(pointer: str, path: str, detail: bytes, number: int = 0) -> HookError:
    """A hook that the init ran: detail is u32 what, u32 number, then the end of its standard error."""
    try:
        what, value = unpack_from("<II", detail)
    except struct_error:
        return HookError(pointer, path, f"cannot be started: {os.strerror(number).lower()}")
    said = detail[8:].decode("utf-8", "replace")
    why = {
        1: f"ended with exit status {value}",
        2: f"was killed by signal {value}",
        3: "did not end within its timeout",
        4: f"cannot be started: {os.strerror(value).lower()}",
        5: "got no state document",
    }.get(what, f"failed ({what})")
    return HookError(pointer, path, why + _said(said))


def _said(text: str) -> str:
    words = " ".join(text.split())
    return f": {words[-400:]}" if words else ""


def program(name: str, number: int, detail: bytes, machine: str, *, search: str = "") -> tuple[str, bool]:
    """Why ``name`` cannot be executed, and whether there is such a file at all (pure)."""
    mode, flags, path, head = _parse(detail)
    kernel = os.strerror(number).lower()
    if not path:
        if number in (ENOENT, ENOTDIR) and "/" not in name:
            return (
                f"executable file not found in $PATH ({search})" if search else "executable file not found in $PATH",
                False,
            )
        if number == ELOOP:
            return "too many levels of symbolic links", False
        if number == EACCES:
            return "permission denied: a directory on the way may not be entered", True
        return kernel, False
    if stat.S_ISLNK(mode):
        target = head.split(b"\0")[0].decode("utf-8", "replace")
        if number == ELOOP:
            return f"{kernel}: {path} is a symbolic link to {target}, and so on", False
        words = "no such file or directory" if "/" in name else "executable file not found in $PATH"
        return f"{words}: {path} is a symbolic link to {target}, which does not exist", False
    if stat.S_ISDIR(mode):
        return f"permission denied: {path} is a directory", True
    if not stat.S_ISREG(mode):
        return f"permission denied: {path} is not a regular file", True
    if number == EACCES:
        if flags & ST_NOEXEC:
            return f"permission denied: {path} lies on a mount with noexec", True
        if not mode & 0o111:
            return f"permission denied: {path} has no execute permission (mode {stat.S_IMODE(mode):04o})", True
        loader = interpreter(head)
        if loader:
            return f"permission denied: {path} or its interpreter {loader} may not be executed by this user", True
        return f"permission denied: {path} (mode {stat.S_IMODE(mode):04o}) may not be executed by this user", True
    if number == ENOENT:
        return _missing_interpreter(path, head, kernel), True
    if number == ENOEXEC:
        return f"exec format error: {path} {_format(head, machine)}", True
    if number == ETXTBSY:
        return f"text file busy: somebody has {path} open for writing", True
    if number == ELOOP:
        return f"{kernel}: the interpreter of {path} is a script with an interpreter, and so on", True
    return f"{path}: {kernel}", True


def _parse(detail: bytes) -> tuple[int, int, str, bytes]:
    if len(detail) < 9:
        return 0, 0, "", b""
    mode, flags = unpack_from("<II", detail)
    path, _, head = detail[8:].partition(b"\0")
    return mode, flags, path.decode("utf-8", "surrogateescape"), head


def interpreter(head: bytes) -> str:
    """The interpreter a file names in its first bytes: after ``#!``, or in PT_INTERP; "" for none."""
    if head.startswith(b"#!"):
        line = head[2:].split(b"\n")[0].strip(b" \t")
        return line.split(b" ")[0].split(b"\t")[0].decode("utf-8", "replace")
    if not head.startswith(b"\x7fELF") or len(head) < 52:
        return ""
    wide, order = head[4] == 2, "<" if head[5] == 1 else ">"
    try:
        if wide:
            offset, size, count = (*unpack_from(f"{order}Q", head, 32), *unpack_from(f"{order}HH", head, 54))
        else:
            offset, size, count = (*unpack_from(f"{order}I", head, 28), *unpack_from(f"{order}HH", head, 42))
        for position in range(min(count, 64)):
            at = offset + position * size
            if unpack_from(f"{order}I", head, at)[0] != PT_INTERP:
                continue
            start, length = (
                (unpack_from(f"{order}Q", head, at + 8)[0], unpack_from(f"{order}Q", head, at + 32)[0])
                if wide
                else (unpack_from(f"{order}I", head, at + 4)[0], unpack_from(f"{order}I", head, at + 16)[0])
            )
            return head[start : start + length].split(b"\0")[0].decode("utf-8", "replace")
    except struct_error:
        pass  # the table lies beyond the bytes we have
    return ""


def _missing_interpreter(path: str, head: bytes, kernel: str) -> str:
    found = interpreter(head)
    if found.endswith("\r") or (head.startswith(b"#!") and b"\r" in head.split(b"\n")[0]):
        return (
            f"{kernel}: the first line of {path} ends with a carriage return, so that its interpreter "
            f"{found.rstrip(chr(13))} is not found"
        )
    if not found:
        return f"{kernel}: {path} is there, but the interpreter it needs is not"
    if head.startswith(b"#!"):
        return f"{kernel}: {path} needs the interpreter {found}, which does not exist"
    return f"{kernel}: {path} needs the loader {found}, which does not exist"


def _format(head: bytes, machine: str) -> str:
    if not head:
        return "is empty"
    if head.startswith(b"\x7fELF") and len(head) >= 20:
        order = "<" if head[5] == 1 else ">"
        code = unpack_from(f"{order}H", head, 18)[0]
        made_for = MACHINES.get(code, f"machine {code}")
        if code == 183 and head[5] == 2:
            made_for = "aarch64_be"
        if made_for not in _RUNS.get(machine, (machine,)):
            return f"is made for {made_for}, this machine is {machine}"
        return "is a damaged program or one this kernel cannot run"
    if head.startswith(b"MZ"):
        return "is a Windows program"
    if head[:4] in (b"\xcf\xfa\xed\xfe", b"\xca\xfe\xba\xbe", b"\xce\xfa\xed\xfe"):
        return "is a macOS program"
    if head.startswith(b"\xef\xbb\xbf#!"):
        return "starts with a byte order mark before its #!"
    if head.startswith(b"#!"):
        return "has a first line with no usable interpreter"
    return "is neither a program for this kernel nor a script that starts with #!"


def later_error(
    kind: str, pointer: str, text: str, number: int, detail: bytes, *, process: dict[str, Any] | None = None
) -> KnarrError:
    """``init_error`` for an operation of which only kind, pointer and subject were recorded at creation.

    ``process`` is the section of config.json, for what only that explains.
    """
    names = {"user": (), "exec": ("name",), "find_program": ("name",), "hostname": ("name",)}.get(kind, ("path",))
    arguments: dict[str, object] = dict.fromkeys(names, text)
    if kind == "exec" and process:
        arguments |= {"argv_env": [*process["args"], *(process.get("env") or ())], "argc": len(process["args"])}
    return init_error(kind or "start the container", arguments, pointer, number, detail)
