"""The AppArmor profile of ``knarr run``'s containers: its text, and when it has to be loaded. Pure.

It is the wall behind mounts, capabilities and seccomp: what those forbid by default it forbids too, so that a hole in
one of them, or ``--userns=host``, ``--cap-add`` or ``--network host``, does not open everything. docs/security.md
"AppArmor and SELinux".
"""

from __future__ import annotations

from knarr.base.record import Record

NAME = "knarr-default"

# No include: the text means the same on every distribution, and loads where /etc/apparmor.d is empty.
_TEXT = """\
profile knarr-default flags=(attach_disconnected,mediate_deleted) {
  # Which of these a container has, its capability sets, seccomp and namespaces say.
  file,
  capability,
  network,
  unix,

  # AF_ALG: CVE-2026-31431. AF_VSOCK reaches the hypervisor. Both also where seccomp is turned off.
  deny network alg,
  deny network vsock,

  # Whoever stops a container has rights of their own, or none; a container reaches only its like.
  signal (receive),
  signal (send) peer=knarr-default,
  ptrace (trace, read, tracedby, readby) peer=knarr-default,

  # Also with CAP_SYS_ADMIN: a umount would bare what is masked.
  deny mount,
  deny remount,
  deny umount,
  deny pivot_root,

  # The kernel's settings, whoever owns them: in /proc only what belongs to a process is to be written.
  deny /proc/* wl,
  deny /proc/[^1-9]*/** wl,
  deny /proc/sysrq-trigger rwklx,
  deny /proc/kcore rwklx,
  deny /sys/** wl,
  deny /sys/firmware/** rwklx,
  deny /sys/kernel/debug/** rwklx,
  deny /sys/kernel/security/** rwklx,
  deny /sys/kernel/tracing/** rwklx,
}
"""


def profile_text(*, abi: bool) -> str:
    """The profile as apparmor_parser reads it.

    ``abi``: /etc/apparmor.d/abi/3.0 is there. Without that line a newer kernel would deny what no rule here names yet.
    """
    return f"abi <abi/3.0>,\n{_TEXT}" if abi else _TEXT


class Choice(Record):
    """What a container gets: the ``profile`` ("": none), whether to ``load`` it before, and a ``note`` for the user."""

    profile: str = ""
    load: bool = False
    note: str = ""


def choose(*, loaded: bool | None, marker: str, digest: str, root: bool, parser: str) -> Choice:
    """Decide for one machine where AppArmor is enabled.

    ``loaded``: the kernel has a profile of our name; None: its list cannot be seen, as inside of other containers.
    ``marker``: the digest of the text that knarr loaded since the machine's start, "" if it loaded none: then a profile
    of our name is the administrator's, and stays. ``digest``: that of today's text. ``root``: of the whole machine.
    ``parser``: the path of apparmor_parser, "" if there is none.
    """
    if loaded is None:
        return Choice()
    if loaded and marker in ("", digest):
        return Choice(NAME)
    if root and parser:
        return Choice(NAME, load=True)
    if loaded:
        return Choice(NAME)  # of another version of knarr: better than none
    if root:
        return Choice(note="no AppArmor profile guards this container: apparmor_parser (package apparmor) is missing")
    return Choice()
