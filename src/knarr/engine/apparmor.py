"""Have the kernel know the AppArmor profile of knarr's containers (bundle/apparmor_profile.py has it)."""

from __future__ import annotations

import os
import shutil

from knarr.base.errors import FileError
from knarr.base.files import read_file, write_atomic
from knarr.bundle.apparmor_profile import NAME, Choice, choose, profile_text
from knarr.content.digest import sha256_of
from knarr.engine import host

PROFILES = "/sys/kernel/security/apparmor/policy/profiles"
"""A directory NAME.NUMBER for each profile that is loaded; unlike the file "profiles" anybody may list it."""
ABI = "/etc/apparmor.d/abi/3.0"
MARKER = "/run/knarr-apparmor"
"""The digest of the text that was loaded; like the profile it is gone with the next boot."""
_TIMEOUT = 60.0


def default_profile() -> tuple[str, str]:
    """The profile for a container that names none, loaded if need be, "" for none; and a note if that is a pity."""
    if not host.host().apparmor:
        return "", ""
    text = profile_text(abi=os.path.exists(ABI))
    digest = sha256_of(text.encode())
    # Looked at each time: profiles come and go while a library's process lives.
    parser = _parser()
    choice = choose(loaded=_loaded(), marker=_marker(), digest=digest, root=not host.rootless(), parser=parser)
    if choice.load:
        trouble = _load(parser, text, digest)
        if trouble:
            choice = Choice(note=f"no AppArmor profile guards this container: {trouble}")
    return choice.profile, choice.note


def _loaded() -> bool | None:
    try:
        return any(name.rpartition(".")[0] == NAME for name in os.listdir(PROFILES))
    except OSError:
        return None


def _marker() -> str:
    try:
        return read_file(MARKER, 200).decode("ascii", "replace")
    except FileError:
        return ""


def _parser() -> str:
    return shutil.which("apparmor_parser", path=f"/usr/sbin:/sbin:{os.environ.get('PATH', os.defpath)}") or ""


def _load(parser: str, text: str, digest: str) -> str:
    """Load the profile, or replace it; returns what went wrong."""
    import subprocess

    try:
        done = subprocess.run(
            [parser, "--replace", "--skip-cache"],
            input=text.encode(), capture_output=True, check=False, timeout=_TIMEOUT, cwd="/",
        )  # fmt: skip
        if done.returncode:
            said = done.stderr.decode(errors="replace").split("\n")[0][:200]
            return f"apparmor_parser ended with {done.returncode}: {said}"
        write_atomic(MARKER, digest.encode(), mode=0o644)
    except subprocess.TimeoutExpired:
        return f"apparmor_parser took more than {_TIMEOUT:.0f} s"
    except (OSError, FileError) as error:
        return str(error)
    return ""
