"""What this machine's SELinux policy has for containers, and categories of their own for them.

bundle/selinux.py decides which labels that makes.
"""

from __future__ import annotations

import os
import stat
from errno import EACCES, EINVAL, EPERM, EROFS

from knarr.base.errors import FileError, Unsupported
from knarr.base.files import read_file
from knarr.base.record import Record
from knarr.bundle import selinux
from knarr.bundle.options import RunOptions
from knarr.bundle.selinux import Labels
from knarr.engine import claims, host
from knarr.engine.relabel import NAME, label_of, relabel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from knarr.engine.paths import Places
    from knarr.runtime.create import Stdio

SELINUXFS = "/sys/fs/selinux"
_ETC = "/etc/selinux"
_REGISTRIES = ("/var/lib/knarr/categories", "/run/knarr-categories")
_TRIES = 1000
_LAYERS = "system_u:object_r:container_ro_file_t:s0"


def registries(where: Places) -> tuple[str, ...]:
    """Where containers' categories are claimed: for root one place for all stores, else the user's own."""
    return (f"{where.store}/categories",) if host.rootless() else _REGISTRIES


def contexts() -> tuple[str, str]:
    """The policy's contexts for the processes and the files of containers, without categories."""
    found = _lxc_contexts()
    return found.get("process") or selinux.PROCESS, found.get("file") or selinux.FILE


def _lxc_contexts() -> dict[str, str]:
    name = selinux.policy_name(_text(f"{_ETC}/config"))
    return selinux.read_contexts(_text(f"{_ETC}/{name}/contexts/lxc_contexts")) if name else {}


class Choice(Record):
    """What a container gets: ``labels``, the ``categories`` in them that are its own ("": none), a ``note`` to tell."""

    labels: Labels = Labels()
    categories: str = ""
    note: str = ""


def choose(options: RunOptions, categories: str = "") -> Choice:
    """The labels of a container: by default the policy's for containers, with ``categories`` ("": two at random).

    Raises Unsupported when what was asked for by name cannot be.
    """
    words = options.selinux or (("disable",) if options.privileged else ())
    asked = [word for word in words if word != "disable"]
    if not host.host().selinux:
        if asked:
            raise Unsupported(f"label={asked[0]}", "SELinux is not enabled in this kernel")
        return Choice()
    own = (categories or _at_random()) if selinux.needs_categories(words) else ""
    process, file = contexts()
    found = selinux.labels(words, categories=own, process=process, file=file)
    why = _impossible(found, no_new_privs=not (options.allow_new_privs or options.privileged))
    if not why:
        return Choice(found, own)
    if asked:
        raise Unsupported(f"label={asked[0]}", why)
    if "disable" in words:
        return Choice()
    return Choice(note=f"no SELinux label guards this container: {why} (package container-selinux)")


def summary() -> str:
    """What ``knarr info`` says of the default label."""
    if not host.host().selinux:
        return "none"
    found = choose(RunOptions())
    return found.note or f"{contexts()[0]} with two categories of its own"


def _impossible(labels: Labels, *, no_new_privs: bool) -> str:
    """Why a container cannot have these labels; "" if it can."""
    for label in labels:
        if label and _ask("context", label) is None:
            return f"the policy has no {label}"
    return _not_entered(labels.process, no_new_privs=no_new_privs) if labels.process else ""


def label_layers(path: str) -> None:
    """Give unpacked layers the policy's label for what containers may read and map; what is unpacked later inherits it.

    An overlay shows a label of its own, but what a program maps is the file in the layer, and is judged by its label.
    Raises FileError, SafetyViolation.
    """
    label = _lxc_contexts().get("ro_file") or _LAYERS if host.host().selinux else ""
    if not label or label_of(path) == label or _ask("context", label) is None:
        return
    try:
        relabel(path, label)
    except FileError as error:
        if error.number not in (EACCES, EPERM, EROFS):  # it is the administrator's to say then: docs/security.md
            raise


def label_stdio(stdio: Stdio, label: str) -> None:
    """Label the pipes and files that a labelled container gets as its streams: ours have categories it has not."""
    for fd in (stdio.stdin, stdio.stdout, stdio.stderr) if label else ():
        kind = os.fstat(fd).st_mode
        if stat.S_ISFIFO(kind) or stat.S_ISREG(kind):
            try:
                os.setxattr(fd, NAME, label.encode())
            except OSError:
                pass  # then the policy decides about them as they are


def _not_entered(label: str, *, no_new_privs: bool) -> str:
    """Why this process could not start a program with that label; "" if it can, or nothing is enforced.

    Its exec would end with "permission denied", which tells nobody what is wrong.
    """
    if _text(f"{SELINUXFS}/enforce").strip() == "0":
        return ""
    own = _text("/proc/self/attr/current").rstrip("\0\n")
    wanted = [("process", "transition")] + ([("process2", "nnp_transition")] if no_new_privs else [])
    for kind, permission in wanted:
        if not _allowed(own, label, kind, permission):
            return f"the policy denies {own} the permission {permission} to {label}"
    return ""


def _allowed(source: str, target: str, kind: str, permission: str) -> bool:
    """What the policy says of one permission; what it does not have is not looked at, so it is allowed."""
    number = _text(f"{SELINUXFS}/class/{kind}/index").strip()
    bit = _text(f"{SELINUXFS}/class/{kind}/perms/{permission}").strip()
    if not number or not bit:
        return True
    # allowed, decided, auditallow, auditdeny, sequence number, flags (security/selinux/selinuxfs.c)
    answer = (_ask("access", f"{source} {target} {number}") or "").split()
    if len(answer) < 6:
        return True
    permissive = int(answer[5], 16) & 1
    return bool(permissive or int(answer[0], 16) >> (int(bit) - 1) & 1)


def _ask(file: str, question: str) -> str | None:
    """Write a question to a file of selinuxfs, read the answer; None if the kernel refuses it."""
    try:
        fd = os.open(f"{SELINUXFS}/{file}", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise FileError("ask", f"{SELINUXFS}/{file}", error.errno or EINVAL) from None
    try:
        os.write(fd, question.encode())
        return os.read(fd, 4096).decode(errors="replace").rstrip("\0")
    except OSError:
        return None
    finally:
        os.close(fd)


def _text(path: str) -> str:
    try:
        return read_file(path, 1 << 20).decode(errors="replace")
    except FileError:
        return ""


# -- categories ------------------------------------------------------------------------------------------------------


def _at_random() -> str:
    return selinux.pair(int.from_bytes(os.urandom(8), "big"))


def take(where: Places, categories: str, folder: str) -> str:
    """Take these categories for the container in ``folder``, or others that are free; returns those it has.

    Raises FileError, Unsupported when none are found.
    """
    for _ in range(_TRIES):
        if claims.take(registries(where), categories, folder):
            return categories
        categories = _at_random()
    raise Unsupported("SELinux categories of its own for the container", "none are free", hint="label=level:s0:cX,cY")


def release(where: Places, categories: str, folder: str) -> None:
    """Give a container's categories back, before its directory goes. Raises FileError."""
    claims.release(registries(where), categories, folder)
