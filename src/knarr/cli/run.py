"""``knarr run``: an image, options and a command become a container in the foreground."""

from __future__ import annotations

import os

from knarr.base.errors import UsageError
from knarr.cli.command import Parser

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any

    from knarr.bundle.options import RunOptions
    from knarr.engine.create import Request

EXAMPLES = """\
  knarr run host: -- ls -l /                      a program of this machine, in a throw-away copy
  knarr run -it alpine                            a shell; alpine means docker.io/library/alpine:latest
  knarr run --rm -v ./src:/src:ro -w /src python:3.12 python -m compileall .
  knarr run --network host --memory 512m oci:./my-image:latest
  knarr run bundle:./mybundle                     an OCI bundle as it is"""


def parse_run() -> Parser:
    """The parser of ``knarr run``."""
    parser = Parser(
        "run",
        "Start a container, wait for it, and end with its exit code.",
        "[OPTION…] IMAGE [--] [COMMAND [ARGUMENT…]]",
        EXAMPLES,
        add_help=False,
    )
    parser.add_argument("image", metavar="IMAGE", help="a registry's image, oci:DIR[:TAG], oci-archive:FILE, "
                        "docker-archive:FILE, host: or bundle:DIR")  # fmt: skip
    parser.add_command("instead of the image's own command")

    group = parser.add_argument_group("this run")
    group.add_argument("-i", "--interactive", action="store_true", help="pass standard input on")
    group.add_argument("--name", default="", metavar="NAME", help="a name of your own (default: a random one)")
    group.add_argument("--rm", action="store_true", help="remove it when it ends")
    group.add_argument("--pull", default="missing", metavar="WHEN",
                       help="always, missing (default), never or newer")  # fmt: skip
    group.add_argument("--host-show", action="append", default=[], metavar="PATH",
                       help="with host:, show what is hidden otherwise (see docs/host-image.md)")  # fmt: skip
    group.add_argument("--userns", default="", metavar="auto|host",
                       help="auto (root: default): 65,536 ids of its own, or auto:size=N; host: all")  # fmt: skip
    group.add_argument("--isolation", default="", metavar="KIND",
                       help="namespace (default): this machine's kernel; kernel: a Linux of its own, as a process; "
                       "vm: in a microVM")  # fmt: skip
    add_container_options(parser)
    group = parser.add_argument_group("network of its own")
    group.add_argument("-p", "--publish", action="append", default=[], metavar="[[IP:][PORT]:]PORT[/udp]",
                       help="a port here leads to one inside; without IP on all addresses of this machine")  # fmt: skip
    group.add_argument("--dns", action="append", default=[], metavar="IP", help="a resolver to ask")
    group.add_argument("--dns-search", action="append", default=[], metavar="DOMAIN", help="a domain to search")
    group.add_argument("--add-host", action="append", default=[], metavar="NAME:IP", help="a line for /etc/hosts")
    return parser


def add_container_options(parser: Parser) -> None:
    """The options that shape a container, for ``run`` and ``bundle``."""
    group = parser.add_argument_group("the program")
    group.add_argument("-t", "--tty", action="store_true", help="give it a terminal")
    group.add_argument("-e", "--env", action="append", default=[], metavar="NAME[=VALUE]",
                       help="set a variable; without a value take this shell's")  # fmt: skip
    group.add_argument("--env-file", action="append", default=[], metavar="FILE", help="variables, one a line")
    group.add_argument("-w", "--workdir", default="", metavar="DIR", help="working directory inside")
    group.add_argument("-u", "--user", default="", metavar="USER[:GROUP]", help="names of the image, or numbers")
    group.add_argument("--entrypoint", metavar="PROGRAM",
                       help='instead of the image\'s entrypoint; "" for none, or a JSON list')  # fmt: skip

    group = parser.add_argument_group("the container")
    group.add_argument("-h", "--hostname", default="", metavar="NAME", help="its host name (default: its short id)")
    group.add_argument("--platform", default="", metavar="OS/ARCH", help="for another platform, as linux/arm64")
    group.add_argument("-l", "--label", action="append", default=[], metavar="KEY=VALUE", help="a label")
    group.add_argument("--annotation", action="append", default=[], metavar="KEY=VALUE",
                       help="an annotation for the runtime")  # fmt: skip

    group = parser.add_argument_group("files")
    group.add_argument("-v", "--volume", action="append", default=[], metavar="SOURCE:TARGET[:ro,Z]",
                       help="show a file or directory of this machine inside")  # fmt: skip
    group.add_argument("--mount", action="append", default=[], metavar="type=…,…",
                       help="the same in full: type=bind|tmpfs,source=…,target=…[,readonly]")  # fmt: skip
    group.add_argument("--tmpfs", action="append", default=[], metavar="TARGET[:OPTIONS]", help="a directory in memory")
    group.add_argument("--read-only", action="store_true", help="the root cannot be written")
    group.add_argument("--shm-size", default="", metavar="SIZE", help="size of /dev/shm (default 64m)")

    group = parser.add_argument_group("network")
    group.add_argument("--network", default="none", metavar="KIND[:OPTION,…]",
                       help="none (default): only itself; slirp4netns, pasta: out by a program of that name; private: "
                       "whichever is installed; host: this machine's own network")  # fmt: skip

    group = parser.add_argument_group("limits")
    group.add_argument("-m", "--memory", default="", metavar="SIZE", help="most memory, as 512m or 2g")
    group.add_argument("--cpus", default="", metavar="NUMBER", help="most processors, as 1.5")
    group.add_argument("--pids-limit", default="", metavar="NUMBER", help="most processes (default 2048, -1: no limit)")
    group.add_argument("--ulimit", action="append", default=[], metavar="NAME=SOFT[:HARD]", help="as nofile=4096")

    group = parser.add_argument_group("security")
    group.add_argument("--cap-add", action="append", default=[], metavar="NAME", help="add a capability (or ALL)")
    group.add_argument("--cap-drop", action="append", default=[], metavar="NAME", help="take one away (or ALL)")
    group.add_argument("--security-opt", action="append", default=[], metavar="OPTION",
                       help="seccomp=FILE|unconfined, apparmor=PROFILE|unconfined, landlock=FILE, "
                       "label=disable|type:T|level:L|…")  # fmt: skip
    group.add_argument("--allow-new-privs", action="store_true", help="let sudo, ping and the like gain rights")
    group.add_argument("--sysctl", action="append", default=[], metavar="NAME=VALUE", help="a kernel setting inside")
    group.add_argument("--privileged", action="store_true", help="lift nearly all protection; for trusted programs")
    group.add_argument("--help", action="help", help="show this")


def do_run(arguments: list[str]) -> int:
    """Run a container; returns its exit code."""
    given = parse_run().parse_args(arguments)
    request = request_of(given)
    from knarr.cli.foreground import run_foreground
    from knarr.engine.paths import places

    return run_foreground(places(), request, interactive=given.interactive, terminal=given.tty)


def request_of(given: argparse.Namespace) -> Request:
    """The request for a parsed command line. Raises UsageError, FileError."""
    from knarr.engine.create import Request

    return Request(
        given.image,
        _with_network(options_of(given).replace(userns=given.userns), given),
        name=given.name or "?",
        platform=given.platform,
        pull=given.pull,
        remove=given.rm or given.image == "host:",
        host_show=tuple(given.host_show),
        isolation=given.isolation,
    )


def _with_network(options: RunOptions, given: argparse.Namespace) -> RunOptions:
    plain = given.network in ("none", "host")
    if plain and not (given.publish or given.dns or given.dns_search or given.add_host):
        return options
    from knarr.engine.networks import requested  # only where something is asked for

    return requested(options, given.network, given.publish, given.dns, given.dns_search, given.add_host)


def options_of(given: argparse.Namespace) -> RunOptions:
    """The container's options of a parsed command line. Raises UsageError, FileError."""
    from knarr.bundle.options import RunOptions
    from knarr.engine import options as texts

    command = words(given.command)
    security = texts.parse_security(given.security_opt)
    allow_new_privs = given.allow_new_privs or security.get("allow_new_privs", False)
    mounts = [texts.parse_volume(text) for text in given.volume]
    mounts += [texts.parse_mount(text) for text in given.mount]
    mounts += [texts.parse_tmpfs(text) for text in given.tmpfs]
    options = RunOptions(
        command=tuple(command),
        entrypoint=_entrypoint(given.entrypoint),
        env=texts.environment(given.env, given.env_file, os.environ),
        workdir=given.workdir,
        user=given.user,
        hostname=given.hostname,
        terminal=given.tty,
        network=given.network,
        memory=texts.parse_size(given.memory, "memory") if given.memory else 0,
        cpus=texts.parse_cpus(given.cpus) if given.cpus else 0.0,
        pids_limit=texts.parse_integer(given.pids_limit, "pids limit") if given.pids_limit else 2048,
        readonly=given.read_only,
        shm_size=texts.parse_size(given.shm_size, "shm size") if given.shm_size else 64 << 20,
        cap_add=split(given.cap_add),
        cap_drop=split(given.cap_drop),
        allow_new_privs=allow_new_privs,
        privileged=given.privileged,
        apparmor=security.get("apparmor", ""),
        selinux=security.get("selinux", ()),
        mounts=tuple(mounts),
        ulimits=tuple(texts.parse_ulimit(text) for text in given.ulimit),
        sysctls=tuple(texts.parse_pair(text, "sysctl", bare=False) for text in given.sysctl),
        annotations=tuple(texts.parse_pair(text, "annotation") for text in given.annotation),
        labels=tuple(texts.parse_pair(text, "label") for text in given.label),
    )
    if "landlock" in security:
        from knarr.base.files import read_file
        from knarr.plan.host import LANDLOCK

        rules = read_file(security["landlock"], 1 << 20).decode("utf-8", "replace")
        options = options.replace(annotations=(*options.annotations, (LANDLOCK, rules)))
    if "seccomp" in security:
        options = options.replace(seccomp=_seccomp(security["seccomp"], options))
    return options


def words(rest: list[str]) -> list[str]:
    """The command of a rest of arguments: a first ``--`` only separates."""
    return rest[1:] if rest[:1] == ["--"] else rest


def split(texts: list[str]) -> tuple[str, ...]:
    """Names given one by one or with commas."""
    return tuple(name for text in texts for name in text.split(",") if name)


def _entrypoint(text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    if text.startswith("["):
        from knarr.base import fastjson
        from knarr.base.errors import SpecError

        try:
            value = fastjson.loads(text.encode(), "entrypoint")
        except (SpecError, UnicodeEncodeError):
            raise UsageError(f"entrypoint {text!r} is not a JSON list of words") from None
        if not all(isinstance(word, str) for word in value):
            raise UsageError(f"entrypoint {text!r} is not a JSON list of words")
        return tuple(value)
    return (text,) if text else ()


def _seccomp(text: str, options: RunOptions) -> Any:
    """``unconfined``, or the profile in a file, with its rules decided for this container."""
    if text == "unconfined":
        return text
    from knarr.base import fastjson
    from knarr.base.files import read_file
    from knarr.bundle.convert import capability_sets
    from knarr.bundle.seccomp_profile import convert_profile
    from knarr.bundle.users import ContainerUser
    from knarr.engine import host

    profile = fastjson.loads(read_file(text, 4 << 20), text)
    facts = host.facts()
    bounding = capability_sets(options, ContainerUser(), facts)["bounding"]
    return convert_profile(profile, text, capabilities=bounding, arch=facts.arch, kernel=host.kernel())
