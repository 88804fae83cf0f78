"""``host:``, the image that is always there: this machine's own root below a throw-away writable layer.

What must not be seen is not masked but absent: whiteouts and empty directories lie in two small layers between the
host's root and the writable layer, so nothing has to be mounted over it and a hidden file has no name at all. The
list, and why each entry is on it, stands in docs/host-image.md.
"""

from __future__ import annotations

import os
import stat
from errno import EEXIST, EINVAL, ENOENT
from time import monotonic

from knarr.base.errors import FileError, KnarrError, Unsupported, UsageError
from knarr.bundle.mounts import clean_path
from knarr.content.digest import sha256_of
from knarr.kernel.path import remove_tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from knarr.engine.paths import Places

# Replaced by an empty directory with this mode: people's files, run-time sockets, other engines' and services' data.
EMPTY = {
    "/root": 0o700,
    "/home": 0o755,
    "/run": 0o755,
    "/tmp": 0o1777,
    "/var/tmp": 0o1777,
    "/var/log": 0o755,
    "/var/spool": 0o755,
    "/var/backups": 0o755,
    "/var/mail": 0o755,
    "/srv": 0o755,
    "/mnt": 0o755,
    "/media": 0o755,
    "/lost+found": 0o700,
}

# Of /var/lib only this is kept: what package managers and programs need to know of the installed system.
KEPT_IN_VAR_LIB = frozenset(
    (
        "alternatives", "apt", "binfmts", "dpkg", "ghc", "misc", "pacman", "portage", "python", "rpm", "sgml-base",
        "texmf", "ucf", "xml-core",
    )
)  # fmt: skip

# Gone, whatever their modes: key material and secrets.
SECRETS = (
    "/etc/shadow", "/etc/shadow-", "/etc/gshadow", "/etc/gshadow-", "/etc/sudoers", "/etc/sudoers.d",
    "/etc/ssl/private", "/etc/pki/tls/private", "/etc/pki/private", "/etc/krb5.keytab", "/etc/security/opasswd",
    "/etc/letsencrypt", "/etc/wireguard", "/etc/NetworkManager/system-connections", "/etc/openvpn",
    "/etc/ipsec.secrets", "/etc/ipsec.d/private", "/etc/swanctl/private", "/etc/ppp/chap-secrets",
    "/etc/ppp/pap-secrets", "/etc/docker", "/etc/containers/auth.json", "/etc/kubernetes", "/etc/rancher",
    "/etc/cni", "/etc/mysql/debian.cnf", "/etc/salt",
    "/etc/puppetlabs", "/etc/cryptsetup-keys.d", "/etc/keys", "/etc/credstore", "/etc/credstore.encrypted",
    "/etc/wpa_supplicant", "/etc/netplan", "/etc/postfix/sasl_passwd", "/etc/postfix/sasl_passwd.db",
    "/etc/exim4/passwd.client", "/etc/machine-id",
)  # fmt: skip

# Host keys of sshd: every private one, whatever its type.
_SSH = "/etc/ssh"

# Programs that some machines keep on file systems of their own; shown, read-only. Not /etc and /var: bound as a whole
# they would bring what is hidden with them.
SYSTEM_MOUNTS = ("/usr", "/usr/local", "/opt", "/nix", "/nix/store", "/gnu", "/gnu/store")

_FRESH = 5.0  # seconds a look at /etc counts
_kept: dict[tuple[str, ...], tuple[float, str]] = {}
_mounts: tuple[float, frozenset[str]] = (-_FRESH, frozenset())
_root: dict[int, str] = {}  # the device of "/" -> the type of its file system, which it keeps as long as it is our root


class Hide:
    """What to hide: ``empty`` directories (path -> mode) and ``gone`` paths, none below another."""

    __slots__ = ("empty", "gone")

    def __init__(self, empty: dict[str, int], gone: tuple[str, ...]) -> None:
        self.empty = empty
        self.gone = gone


def hidden(shown: tuple[str, ...] = (), *, walk: bool = True) -> Hide:
    """Return what is hidden of this machine; ``shown`` are paths a person wants to see (``--host-show``).

    With ``walk`` every file of /etc that is not for everybody to read counts as a secret: root in the container could
    read it. An ordinary user cannot, so none of it needs hiding then. Raises UsageError for a path that is not hidden.
    """
    wanted = tuple(clean_path(path, "--host-show") for path in shown)
    empty, gone = dict(EMPTY), set(SECRETS)
    gone |= {f"{_SSH}/{name}" for name in _names(_SSH) if name.startswith("ssh_host_") and not name.endswith(".pub")}
    gone |= {f"/var/lib/{name}" for name in _names("/var/lib") if name not in KEPT_IN_VAR_LIB}
    if walk:
        _unreadable("/etc", gone)
    for path in wanted:
        covering = [place for place in (*empty, *gone) if path == place or path.startswith(f"{place}/")]
        below = [place for place in (*empty, *gone) if place.startswith(f"{path}/")]
        if not covering and not below:
            raise UsageError(f"--host-show {path}: it is not hidden", hint="docs/host-image.md has the list")
        for place in covering:
            if place != path and place in empty:
                raise UsageError(
                    f"--host-show {path}: {place} is hidden as a whole", hint=f"show {place}, or mount it with -v"
                )
        for place in (*covering, *below):
            empty.pop(place, None)
            gone.discard(place)
    # Where a link leads is what counts: /home may be one to another place.
    gone = {f"{os.path.realpath(os.path.dirname(path))}/{os.path.basename(path)}" for path in gone}
    empty = {real: mode for path, mode in empty.items() if _is_directory(real := os.path.realpath(path))}
    covered = (*empty, *gone)
    return Hide(
        {path: mode for path, mode in empty.items() if not any(path.startswith(f"{one}/") for one in covered)},
        tuple(sorted(path for path in gone - set(empty) if not any(path.startswith(f"{one}/") for one in covered))),
    )


def _names(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []


def _is_directory(path: str) -> bool:
    """Whether it is a directory and no link to one."""
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except OSError:
        return False


def _unreadable(folder: str, found: set[str]) -> None:
    """Add what others may not read, and directories they may not enter."""
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return
    for entry in entries:
        try:
            mode = entry.stat(follow_symlinks=False).st_mode
        except OSError:
            continue
        if stat.S_ISDIR(mode):
            if mode & 0o005 != 0o005:
                found.add(entry.path)
            elif entry.path not in found:
                _unreadable(entry.path, found)
        elif not stat.S_ISLNK(mode) and not mode & 0o004:
            found.add(entry.path)


def hiding_layers(where: Places, shown: tuple[str, ...], *, rootless: bool) -> tuple[str, str]:
    """Return the directories of the two hiding layers, top first, made if there are none yet that fit this machine now.

    The lower one has whiteouts for all that is hidden, the upper one the empty directories: what lies over a whiteout
    is not merged with what lies below it, so no overlay attributes are needed, which not every file system has.
    Raises FileError, UsageError, KernelError, Unsupported.
    """
    key = (where.store, *shown)
    kept = _kept.get(key)
    if kept is not None and monotonic() - kept[0] < _FRESH and os.path.isdir(kept[1]):
        return f"{kept[1]}/empty", f"{kept[1]}/gone"
    hide = hidden(shown, walk=not rootless)
    parents = _parents([*hide.empty, *hide.gone])
    facts = [(path, *_facts(path)) for path in parents]
    text = repr((facts, sorted(hide.empty.items()), hide.gone)).encode()
    folder = f"{where.store}/host" if rootless else _memory_place(where)
    path = f"{folder}/{sha256_of(text).encoded[:32]}"
    if not os.path.isdir(path):
        _mkdir(folder)
        # Never removed while the machine is up: a container that uses it would see what it hides.
        _build(folder, path, facts, hide)
    _kept[key] = (monotonic(), path)
    return f"{path}/empty", f"{path}/gone"


def _memory_place(where: Places) -> str:
    """A directory of ours on a tmpfs: overlayfs refuses a layer that lies inside another one, here inside "/".

    The state directory, usually below /run, or one in /dev/shm. Raises Unsupported where neither is a tmpfs.
    """
    root = os.stat("/").st_dev
    for folder, name in ((where.state, "host"), ("/dev/shm", f"knarr-host-{os.geteuid()}")):
        if folder == where.state:
            try:
                os.makedirs(folder, 0o700, exist_ok=True)
            except OSError as error:
                raise FileError("make directory", folder, error.errno or EINVAL) from None
        try:
            facts = os.stat(folder)
        except OSError:
            continue
        if facts.st_dev == root or file_system(folder) not in ("tmpfs", "ramfs"):
            continue
        path = f"{folder}/{name}"
        _mkdir(path)
        facts = os.lstat(path)
        # In /dev/shm anybody could have been there first.
        if stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.geteuid() and not facts.st_mode & 0o077:
            return path
    raise Unsupported("host:", "there is no tmpfs at the state directory or /dev/shm", hint="mount one on /dev/shm")


def file_system(path: str) -> str:
    """The type of the file system a path is on, by its device (proc_pid_mountinfo(5)); "" if it cannot be told."""
    try:
        device = os.stat(path).st_dev
        if path == "/" and device in _root:
            return _root[device]
        lines = _mountinfo()
    except (OSError, FileError):
        return ""
    wanted = f"{os.major(device)}:{os.minor(device)}".encode()
    for line in lines:
        fields = line.split(b" ")
        if fields[2] == wanted:
            kind = fields[fields.index(b"-") + 1].decode()
            if path == "/":
                _root[device] = kind
            return kind
    return ""


def _mountinfo() -> list[bytes]:
    """The mounts of this process' mount namespace, a line each (proc_pid_mountinfo(5)). Raises FileError."""
    try:
        with open("/proc/self/mountinfo", "rb") as file:
            return file.read().splitlines()
    except OSError as error:
        raise FileError("read", "/proc/self/mountinfo", error.errno or ENOENT) from None


def mount_table() -> list[tuple[str, str, str]]:
    """(place, type of the file system, options of the mount) of every mount, in the order they were made."""
    found = []
    for line in _mountinfo():
        fields = line.split(b" ")
        kind = fields[fields.index(b"-") + 1].decode()
        found.append((os.fsdecode(_unescaped(fields[4])), kind, fields[5].decode()))
    return found


def _parents(paths: list[str]) -> list[str]:
    """Every directory above the paths that exists, each after its own parent, the root left out."""
    found = set()
    for path in paths:
        parts = path.split("/")[1:-1]
        for count in range(1, len(parts) + 1):
            found.add("/" + "/".join(parts[:count]))
    return [path for path in sorted(found) if _is_directory(path)]


def _facts(path: str) -> tuple[int, int, int]:
    facts = os.lstat(path)
    return stat.S_IMODE(facts.st_mode), facts.st_uid, facts.st_gid


def _build(folder: str, path: str, parents: list[tuple[str, int, int, int]], hide: Hide) -> None:
    """Make the layers beside their place and rename them there, so that nobody sees half of one."""
    name = f".new-{os.urandom(8).hex()}"
    top = f"{folder}/{name}"
    try:
        os.mkdir(top, 0o700)
        made = {"/"}
        for layer in ("empty", "gone"):
            os.mkdir(f"{top}/{layer}", 0o700)
            os.chmod(f"{top}/{layer}", stat.S_IMODE(os.stat("/").st_mode))
            for place, mode, uid, gid in parents:
                os.mkdir(f"{top}/{layer}{place}", 0o700)
                _own(f"{top}/{layer}{place}", mode, uid, gid)
                made.add(place)
        for place, mode in hide.empty.items():
            os.mkdir(f"{top}/empty{place}", 0o700)
            facts = os.lstat(place)
            _own(f"{top}/empty{place}", mode, facts.st_uid, facts.st_gid)
        for place in (*hide.empty, *hide.gone):
            if os.path.dirname(place) in made:  # else it is not there at all
                os.mknod(f"{top}/gone{place}", stat.S_IFCHR, 0)
        os.rename(top, path)
    except OSError as error:
        _discard(folder, name)
        if error.errno in (EEXIST, 39) and os.path.isdir(path):  # another process was quicker (ENOTEMPTY)
            return
        raise FileError("make the layer that hides secrets in", folder, error.errno or EINVAL) from None
    except BaseException:
        _discard(folder, name)
        raise


def _own(path: str, mode: int, uid: int, gid: int) -> None:
    """Mode and owner as on the host; an ordinary user keeps what cannot be given away."""
    if os.geteuid() == 0:
        os.chown(path, uid, gid)
    os.chmod(path, mode)


def _discard(folder: str, name: str) -> None:
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        remove_tree(fd, name)
    except KnarrError:
        pass  # a remnant of no consequence
    finally:
        os.close(fd)


def _mkdir(path: str) -> None:
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        pass
    except OSError as error:
        raise FileError("make directory", path, error.errno or EINVAL) from None


def mount_points(where: Places) -> tuple[str, str, str]:
    """Empty directories for the init to mount on, in its own mount namespace: shared by all containers.

    For the root, for its writable layer, and for the host's root with shifted ids.
    """
    root, scratch, shifted = (f"{where.store}/host/{name}" for name in ("root", "scratch", "shifted"))
    if not os.path.isdir(shifted):
        for path in (f"{where.store}/host", root, scratch, shifted):
            _mkdir(path)
    return root, scratch, shifted


def mounted_below() -> frozenset[str]:
    """Mount points of this process' mount namespace, unescaped (proc_pid_mountinfo(5)); a look counts some seconds."""
    global _mounts
    if monotonic() - _mounts[0] < _FRESH:
        return _mounts[1]
    _mounts = (monotonic(), frozenset(place for place, _, _ in mount_table()))
    return _mounts[1]


def _unescaped(path: bytes) -> bytes:
    for code, char in ((b"\\040", b" "), (b"\\011", b"\t"), (b"\\012", b"\n"), (b"\\134", b"\\")):
        path = path.replace(code, char)
    return path


class Part:
    """One piece of the host's tree for a user namespace.

    ``overlay``: a directory without mounts below; ``link``, ``file``; ``directory``: one that is only made.
    """

    __slots__ = ("kind", "path", "target")

    def __init__(self, kind: str, path: str, target: str = "") -> None:
        self.kind = kind
        self.path = path
        self.target = target


def parts(where: Places, hide: Hide) -> list[Part]:
    """Cut the host's root into pieces that an ordinary user may put an overlay on.

    In a user namespace the kernel refuses an overlay over a directory with mounts below it: they could uncover what
    lies under them (CVE-2021-3732). So each top-level directory is one piece; one that has mounts below is made anew
    and its entries are pieces.
    """
    # The store is treated as a mount, too: the writable layers in it must not lie inside what they cover.
    mounts = {path for path in (*mounted_below(), where.store) if path != "/"}
    return _pieces("/", mounts, hide)


def _pieces(folder: str, mounts: set[str], hide: Hide) -> list[Part]:
    found: list[Part] = []
    for name in sorted(_names(folder)):
        path = f"{folder.rstrip('/')}/{name}"
        if path in ("/proc", "/sys", "/dev") or path in hide.gone:
            continue
        try:
            mode = os.lstat(path).st_mode
        except OSError:
            continue
        if stat.S_ISLNK(mode):
            found.append(Part("link", path, os.readlink(path)))
        elif path in hide.empty:
            found.append(Part("directory", path))
        elif stat.S_ISDIR(mode):
            if path in mounts and path not in SYSTEM_MOUNTS:
                found.append(Part("directory", path))
            elif any(place.startswith(f"{path}/") for place in mounts):
                found.append(Part("directory", path))
                found += _pieces(path, mounts, hide)
            else:
                found.append(Part("overlay", path))
        elif stat.S_ISREG(mode):
            found.append(Part("file", path))
    return found
