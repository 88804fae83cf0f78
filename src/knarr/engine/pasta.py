"""How pasta (of passt) is called for a container (pure)."""

from __future__ import annotations

from knarr.base.errors import UsageError
from knarr.engine.networks import UserNetwork

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from knarr.bundle.options import Port

RESOLVER = "169.254.1.1"
"""Link-local (RFC 3927): nobody's, and pasta sends what is for it to this machine's resolver, if it is on loopback.

Not otherwise: pasta of 2023 then takes answers of that resolver, asked by its own address, for answers of this one.
"""
_KIND = "pasta"
_MTU = "1500"
_WORDS = {
    "--ipv4-only": False, "-4": False, "--ipv6-only": False, "-6": False, "--no-icmp": False, "--no-tcp": False,
    "--no-udp": False, "--mtu": True, "-m": True, "--address": True, "-a": True, "--netmask": True, "-n": True,
    "--gateway": True, "-g": True, "--interface": True, "-i": True, "--outbound": True, "-o": True,
    "--outbound-if4": True, "--outbound-if6": True, "--ns-ifname": True, "-I": True, "--mac-addr": True, "-M": True,
    "--tcp-ns": True, "-T": True, "--udp-ns": True, "-U": True,
}  # fmt: skip
"""What may be said, and whether a value follows. The rest is knarr's to say, or names files."""
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.:-_/%")


def pasta(
    program: str, options: Sequence[str], ports: Sequence[Port], *, guest: bool, root: bool, forward: bool
) -> UserNetwork:
    """The call for these options, pasta's own words as Podman takes them. Raises UsageError.

    ``guest``: the container's devices are a guest's; ``root``: who calls it is, whom it would not stay; ``forward``:
    this machine's resolvers are out of the container's reach.
    """
    given = list(_given(options))
    flags = {word for word, _ in given}
    if guest and ports:
        why = "pasta leads them to the loopback device of the network namespace, and a guest has its own"
        raise UsageError(f"network {_KIND}: ports of a guest cannot be published: {why}", hint="use slirp4netns")
    words = [program, "--quiet", "--stderr", "--config-net", "--no-netns-quit", "--netns-only"]
    words += ["--runas", "0:0"] if root else []
    if "--map-gw" not in flags:
        words.append("--no-map-gw")
    # Without these, what listens on one side's loopback device is led to from the other's (pasta(1)).
    for flag, name, protocol in (("-T", "--tcp-ns", ""), ("-U", "--udp-ns", ""), ("-t", "", "tcp"), ("-u", "", "udp")):
        led = [f"{port.ip}/{port.host}:{port.inside}" for port in ports if port.protocol == protocol]
        if not flags & {flag, name}:
            words += [word for each in led or ["none"] for word in (flag, each)]
    if guest and not flags & {"-m", "--mtu"}:
        words += ["--mtu", _MTU]
    resolver = RESOLVER if forward and not flags & {"-6", "--ipv6-only", "--no-udp"} else ""
    words += ["--dns-forward", resolver] if resolver else []
    for word, value in given:
        if word != "--map-gw":
            words += [word, value] if value else [word]
    words += ["--netns", "/proc/self/fd/0"]
    return UserNetwork(program, tuple(words), resolver=resolver)


def _given(options: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Words and their values: ``--mtu,1500`` and ``--mtu=1500`` are one."""
    rest = iter(options)
    for text in rest:
        word, equals, value = text.partition("=")
        if word == "--map-gw" and not equals:
            yield word, ""
            continue
        if word not in _WORDS:
            hint = f"there are --map-gw, {', '.join(each for each in _WORDS if each.startswith('--'))}"
            raise UsageError(f"network {_KIND}: {text!r} is not known", hint=hint)
        if _WORDS[word] and not equals:
            value = next(rest, "")
        if bool(value) != _WORDS[word] or not set(value) <= _PLAIN or value.startswith("-"):
            raise UsageError(f"network {_KIND}: {word} {'wants a value' if _WORDS[word] else 'takes none'}")
        yield word, value
