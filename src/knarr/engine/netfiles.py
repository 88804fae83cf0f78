"""/etc/hosts, /etc/hostname and /etc/resolv.conf of a container: made in its own directory, bound in by the init.

Nothing is written into the image's root from here, so a symbolic link at one of these places cannot lead anywhere
(CVE-2024-5154 and its kin): the init resolves the target inside the root.
"""

from __future__ import annotations

import os

from knarr.base.errors import FileError
from knarr.base.files import read_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from knarr.bundle.options import RunOptions
    from knarr.engine.networks import UserNetwork
    from knarr.kernel.userns import IdMap

_LIMIT = 1 << 20
HOSTS, HOSTNAME, RESOLV = "/etc/hosts", "/etc/hostname", "/etc/resolv.conf"


def write_files(
    folder: str,
    options: RunOptions,
    *,
    hostname: str,
    network: UserNetwork | None = None,
    host_image: bool = False,
    ids: IdMap | None = None,
) -> tuple[tuple[str, str], ...]:
    """Write the files below ``folder``/etc; return (target, file) pairs to be bound.

    They are root's in the container: ``ids`` if that is not root's here. Of ``host:`` only those that would be wrong.

    With the host's network the host's own names and resolvers count; without a network only the container itself
    has a name, and an empty resolv.conf makes look-ups fail at once instead of after a time-out. Raises FileError.
    """
    place = f"{folder}/etc"
    host = options.network == "host"
    contents = {
        HOSTS: _host_file(HOSTS) if host else _own_names(hostname, network).encode(),
        HOSTNAME: f"{hostname}\n".encode(),
        RESOLV: _host_file(RESOLV) if host else b"",
    }
    if network is not None or options.dns or options.dns_search:
        from knarr.engine.networks import resolv_conf

        first = network.resolver if network else ""
        text = _host_file(RESOLV).decode("utf-8", "replace")
        made = resolv_conf(text, first=first, dns=options.dns, search=options.dns_search)
        contents[RESOLV] = made.encode()
    if options.hosts:
        from knarr.engine.networks import named_hosts

        lines = "".join(f"{address}\t{name}\n" for name, address in named_hosts(options, network))
        contents[HOSTS] += lines.encode()
    if host_image:
        # The host's own resolv.conf may be a link into /run, which is hidden; its hosts file lacks our name.
        wrong = {RESOLV if host else HOSTS}
        wrong |= {HOSTS} if options.hosts else set()
        wrong |= {RESOLV} if network or options.dns or options.dns_search else set()
        contents = {target: data for target, data in contents.items() if target in wrong}
    try:
        os.mkdir(place, 0o755)
        for target, data in contents.items():
            fd = os.open(f"{folder}{target}", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            try:
                os.fchmod(fd, 0o644)
                if ids is not None:
                    os.fchown(fd, ids.uid(0), ids.gid(0))
                if data:
                    os.write(fd, data)
            finally:
                os.close(fd)
    except OSError as error:
        raise FileError("write", place, error.errno or 0) from None
    return tuple((target, f"{folder}{target}") for target in contents)


def _own_names(hostname: str, network: UserNetwork | None) -> str:
    own = network.address if network else ""
    names = f"localhost {hostname}" if hostname and not own else "localhost"
    text = f"127.0.0.1\t{names}\n::1\tlocalhost ip6-localhost ip6-loopback\n"
    if own and hostname:
        text += f"{own}\t{hostname}\n"
    if network and network.gateway:
        text += f"{network.gateway}\thost.containers.internal host.docker.internal\n"
    return text


def _host_file(path: str) -> bytes:
    try:
        return read_file(path, _LIMIT)
    except FileError:
        return b""  # a host without one
