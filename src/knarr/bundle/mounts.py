"""Mounts that people and images ask for, as entries of config.json: pure, with safe defaults.

A mount of the user's gets ``nosuid,nodev`` and private propagation unless told otherwise, and never covers /proc,
/sys or /dev (CVE-2015-3631). Where it lands is resolved inside the container's root by the init, so a path through
a symbolic link of the image stays inside.
"""

from __future__ import annotations

from knarr.base.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from knarr.bundle.options import RunOptions, VolumeMount

# Below /dev only these may be replaced; devices themselves come from linux.devices.
_REPLACEABLE = ("/dev/shm", "/dev/mqueue")
_PROPAGATION = frozenset(("private", "rprivate", "slave", "rslave", "shared", "rshared", "unbindable", "runbindable"))
_BIND_WORDS = frozenset(("ro", "rw", "noexec", "exec", "nosuid", "suid", "nodev", "dev", "noatime", "relatime"))
_IDMAP_WORDS = frozenset(("idmap", "noidmap"))  # decided by the engine: VolumeMount.idmap
_TMPFS_WORDS = _BIND_WORDS | {"nodiratime", "strictatime"}
_TMPFS_VALUES = ("size", "mode", "uid", "gid", "nr_inodes")


def clean_path(path: str, what: str) -> str:
    """``path`` without doubled and trailing slashes and "." parts; raises UsageError for a relative one or ".."."""
    if not path.startswith("/") or "\0" in path:
        raise UsageError(f"{what} {path!r} is not an absolute path")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise UsageError(f"{what} {path!r} has a .. in it")
    return "/" + "/".join(parts)


def check_target(path: str, what: str) -> str:
    """The place of a mount in the container, cleaned; raises UsageError for what must not be covered."""
    target = clean_path(path, what)
    if target == "/":
        raise UsageError(f"{what} {path!r} would cover the whole root")
    for guarded in ("/proc", "/sys", "/dev"):
        if target == guarded or (target.startswith(guarded + "/") and target not in _REPLACEABLE):
            raise UsageError(f"{what} {path!r} would cover {guarded}, which belongs to the runtime")
    return target


def tmpfs_volume(target: str) -> dict[str, Any]:
    """The mount for a (checked) path of Config.Volumes where nothing better is at hand: an empty tmpfs."""
    return {"destination": target, "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev", "mode=755"]}


def volume_entry(mount: VolumeMount) -> dict[str, Any]:
    """One mount of the user's as config.json wants it; raises UsageError for an unknown option."""
    target = check_target(mount.target, "mount target")
    if mount.kind == "bind":
        return {"destination": target, "type": "bind", "source": mount.source, "options": _bind_options(mount)}
    return {"destination": target, "type": "tmpfs", "source": "tmpfs", "options": _tmpfs_options(mount)}


def _bind_options(mount: VolumeMount) -> list[str]:
    """Attributes are recursive ("rro"): a mount below the source is no way around them."""
    if not mount.source.startswith("/"):
        raise UsageError(f"mount source {mount.source!r} is not an absolute path of the host")
    words = list(mount.options)
    depth = "bind" if "bind" in words else "rbind"
    propagation = next((word for word in reversed(words) if word in _PROPAGATION), "rprivate")
    wanted = {"suid": "nosuid", "dev": "nodev"}
    attributes = [f"r{default}" for word, default in wanted.items() if word not in words]
    for word in words:
        if word not in _BIND_WORDS | _PROPAGATION | _IDMAP_WORDS and word not in ("bind", "rbind"):
            raise UsageError(f"mount option {word!r} is not known for a bind mount of {mount.target}")
        if word in ("noexec", "noatime"):
            attributes.append(f"r{word}")
    if mount.readonly or "ro" in words:
        attributes.append("rro")
    if mount.idmap:
        attributes.append(mount.idmap)
    return [depth, propagation, *attributes]


def _tmpfs_options(mount: VolumeMount) -> list[str]:
    words = list(mount.options)
    kept = []
    for word in words:
        name, equals, _ = word.partition("=")
        if not (word in _TMPFS_WORDS or (equals and name in _TMPFS_VALUES)):
            raise UsageError(f"mount option {word!r} is not known for a tmpfs on {mount.target}")
        if word not in ("dev", "suid", "exec", "rw"):
            kept.append(word)
    for word, default in (("suid", "nosuid"), ("dev", "nodev"), ("exec", "noexec")):
        if word not in words and default not in words:
            kept.append(default)
    if mount.readonly and "ro" not in kept:
        kept.append("ro")
    if not any(word.startswith("mode=") for word in words):
        kept.append("mode=1777")
    return kept


def place_mounts(
    base: list[dict[str, Any]],
    volumes: Sequence[dict[str, Any]],
    files: Sequence[tuple[str, str]],
    options: RunOptions,
) -> list[dict[str, Any]]:
    """All mounts in the order they must be made: parents before what lies below them, the user's over all others.

    Raises UsageError when two mounts of the user's have one target.
    """
    placed = {mount["destination"]: mount for mount in base}
    if options.shm_size != 64 << 20:
        if options.shm_size < 0:
            raise UsageError(f"shm size {options.shm_size} is not a number of bytes")
        shm = placed["/dev/shm"]
        shm["options"] = [word for word in shm["options"] if not word.startswith("size=")]
        shm["options"].append(f"size={options.shm_size}")
    extra = {mount["destination"]: mount for mount in volumes}
    for target, source in files:
        flags = ["bind", "rprivate", "nosuid", "nodev", "noexec"]
        extra[target] = {
            "destination": target,
            "type": "bind",
            "source": source,
            "options": [*flags, "ro"] if options.readonly else flags,
        }
    asked: set[str] = set()
    for wish in options.mounts:
        entry = volume_entry(wish)
        target = entry["destination"]
        if target in asked:
            raise UsageError(f"two mounts are asked for at {target}")
        asked.add(target)
        (placed if target in placed else extra)[target] = entry
    ordered = sorted(extra.values(), key=lambda mount: mount["destination"].count("/"))
    return [*placed.values(), *ordered]
