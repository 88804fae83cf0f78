"""From what was asked for to a container that only lacks its process: image, root, user, config.json.

The record is written before anything else is made, and everything is undone when a step fails (docs/security.md I9).
"""

from __future__ import annotations

import _signal
import os

from knarr.base.clock import now_rfc3339
from knarr.base.errors import Exists, FileError, InUse, KnarrError, NotFound, SpecError, Unsupported, UsageError
from knarr.base.files import read_file
from knarr.base.ids import new_id
from knarr.base.record import Record
from knarr.bundle import users
from knarr.bundle.convert import arguments, to_runtime_spec, volume_paths
from knarr.bundle.options import RunOptions
from knarr.engine import apparmor, host, ids, images, netfiles, records, rootfs, selinux
from knarr.engine.names import random_name
from knarr.engine.records import Container
from knarr.isolation.choose import ANNOTATION as ISOLATION
from knarr.isolation.choose import NAMES as ISOLATIONS
from knarr.isolation.choose import WRITES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from knarr.bundle.options import Facts, Port, VolumeMount
    from knarr.engine.images import Ready, Watcher
    from knarr.engine.networks import UserNetwork
    from knarr.engine.paths import Places
    from knarr.kernel.userns import IdMap
    from knarr.plan.root import Root

CONFIG_LIMIT = 16 << 20


class Request(Record):
    """One container that somebody wants. ``name`` empty: none, "?": a random one. ``host_show``: see hostroot.

    ``isolation``: namespace ("" means it too), kernel or vm.
    """

    image: str
    options: RunOptions = RunOptions()
    name: str = ""
    platform: str = ""
    pull: str = "missing"
    remove: bool = True
    host_show: tuple[str, ...] = ()
    isolation: str = ""

    @property
    def guest(self) -> bool:
        """Whether it runs on a kernel of its own. Raises UsageError for an unknown kind."""
        if self.isolation not in ("", *ISOLATIONS):
            raise UsageError(f"isolation {self.isolation!r} is not known", hint=f"there are {', '.join(ISOLATIONS)}")
        return self.isolation not in ("", "namespace")


class Prepared(Record):
    """A container that only lacks its process.

    ``notes`` are sentences for the user; with ``root`` None config.json's own counts. ``owner`` is who its process is
    outside, user and group, if it has ids of its own.
    """

    where: Places
    record: Container
    config: dict[str, Any]
    bundle: str
    root: Root | None
    notes: tuple[str, ...] = ()
    owner: tuple[int, int] | None = None
    network: UserNetwork | None = None
    ports: tuple[Port, ...] = ()


_PARSED, _PARSED_LIMIT = 64, 256 << 10
_bundles: dict[str, tuple[bytes, bytes]] = {}  # config.json's path -> its bytes, and what they were parsed to
_TRIES = 10
"""So often layers are made for a container, when others remove them before it holds them."""

_checked: set[int] = set()
_users: dict[tuple[str, str], users.ContainerUser] = {}


def prepare(where: Places, request: Request, watcher: Watcher | None = None) -> Prepared:
    """Make everything a container needs before its process. Raises what image, layer and bundle raise; undone then."""
    if request.image.startswith("bundle:"):
        return _prepare_bundle(where, request)
    request = request.replace(options=_networked(request.options))
    if request.image == "host:":
        return _prepare(where, request, None)
    for _ in range(_TRIES):
        ready = images.ready(where, request.image, platform=request.platform, pull=request.pull, watcher=watcher)
        layers = images.layers(where, mounted=ready.mounted)
        # Between looking a layer up and recording that a container needs it, nobody may remove it.
        with layers.hold():
            if layers.has(ready.chain):
                return _prepare(where, request, ready)
        # Somebody removed it before we held it.
    raise InUse("image", request.image, "others, who remove its layers each time they are made")


def _networked(options: RunOptions) -> RunOptions:
    """The options, with their network decided. Raises UsageError, Unsupported."""
    plain = options.network in ("none", "host")
    if plain and not (options.publish or options.dns or options.dns_search):
        return options
    from knarr.engine.networks import settled  # only where something is asked for

    return settled(options)


def _network_of(options: RunOptions, *, guest: bool) -> tuple[RunOptions, UserNetwork | None]:
    """The program that is to be the network, and the options with numbers for ports that may be any."""
    if options.network in ("none", "host"):
        return options, None
    from knarr.engine.networks import wanted
    from knarr.engine.ports import free

    options = options.replace(publish=tuple(free(port) for port in options.publish))
    return options, wanted(options, guest=guest)


def _prepare(where: Places, request: Request, ready: Ready | None) -> Prepared:
    options = request.options
    if request.guest and not options.userns:
        # Its root is nobody on this machine anyway, and the guest shows files with the ids they have here.
        options = options.replace(userns="host")
    if request.guest and not options.selinux:
        options = options.replace(selinux=("disable",))  # a guest knows no label of the host's
    options, network = _network_of(options, guest=request.guest)
    document = ready.image.image_config() if ready else _host_image()
    if ready is None and request.platform:
        raise UsageError("--platform does not go with host:, which is this machine")
    if ready is not None and request.host_show:
        raise UsageError("--host-show goes with the image host: only")
    user_text = options.user or str((document.get("config") or {}).get("User") or "")
    user = _user(where, ready, user_text)
    notes: list[str] = []
    count, note = ids.count_for(where, options.userns, privileged=options.privileged, host_root=ready is None)
    if note:
        notes.append(note)
    facts = host.facts(privileged=options.privileged)
    if not options.apparmor and not options.privileged and not request.guest:
        profile, note = apparmor.default_profile()
        facts = facts.replace(apparmor=profile)
        if note:
            notes.append(note)
    choice = selinux.choose(options)
    if choice.note:
        notes.append(choice.note)
    own = ids.of_range(ids.candidate(), count) if count else None
    if own is not None:
        facts = facts.replace(uid_map=own.uids, gid_map=own.gids)
    _check_mapped(user, facts)
    options = options.replace(mounts=tuple(_shown(mount, own, notes) for mount in options.mounts))
    record = _record(
        request.replace(options=options), ready, arguments(document, options), own, choice.categories
    )
    hostname = options.hostname or _hostname(record.id, options.network)
    options = options.replace(hostname=hostname)
    record, folder = _reserve(where, record, random=request.name == "?")
    try:
        if own is not None:
            first = ids.take(record.ids_first, folder)
            if first != record.ids_first:
                record = record.replace(ids_first=first)
                records.save(where, record)
                own = ids.of_range(first, count)
                facts = facts.replace(uid_map=own.uids, gid_map=own.gids)
        if choice.categories:
            categories = selinux.take(where, choice.categories, folder)
            if categories != choice.categories:
                choice = selinux.choose(options, categories)
                record = record.replace(categories=categories)
                records.save(where, record)
        facts = facts.replace(selinux=choice.labels)
        made = (
            rootfs.of_image(where, folder, ready, own)
            if ready
            else rootfs.of_host(where, folder, request.host_show, own)
        )
        paths = volume_paths(document)
        volumes: dict[str, dict[str, Any] | None] = dict.fromkeys(paths)
        if ready and not request.guest:  # in a guest they are part of its own layer
            volumes = rootfs.image_volumes(where, folder, ready, paths, notes, own)
        files = netfiles.write_files(
            folder, options, hostname=hostname, network=network, host_image=ready is None, ids=own
        )
        conversion = to_runtime_spec(document, options, user, facts, volumes=volumes, files=files, below=made.below)
        config = conversion.config
        config["root"]["path"] = made.path
        _ask_for(config, request)
        if request.guest and request.remove:
            config["annotations"].setdefault(WRITES, "discard")  # nobody will look
        _check(config, ready, request.options)
        if choice.labels.mount:
            _label(where, folder, made.root, options.mounts, choice.labels.mount, notes)
        if not record.remove:
            records.save_config(where, record.id, config)
    except BaseException as error:
        discard(where, record, error)
        raise
    owner = (own.uid(user.uid), own.gid(user.gid)) if own is not None else None
    return Prepared(
        where, record, config, folder, made.root, (*notes, *conversion.notes), owner, network, options.publish
    )


def _label(
    where: Places, folder: str, root: Root, mounts: tuple[VolumeMount, ...], label: str, notes: list[str]
) -> None:
    """Give the container's own files its label, and volumes that label or one for all. Last, as it is not undone."""
    from knarr.bundle.selinux import shared
    from knarr.engine.relabel import relabel, relabel_volume

    # An overlay shows the label by itself; these are seen as they are.
    for name in ("etc", "volumes", *(("rootfs",) if root.kind == "bind" else ())):
        if os.path.isdir(f"{folder}/{name}"):
            relabel(f"{folder}/{name}", label)
    for mount in mounts:
        if mount.relabel:
            wanted = shared(label) if mount.relabel == "shared" else label
            note = relabel_volume(mount.source, wanted, own=(where.store, where.state))
            if note:
                notes.append(note)


def _ask_for(config: dict[str, Any], request: Request) -> None:
    """Put the kind of isolation into config.json, which may ask for one itself."""
    if request.guest or request.isolation:
        config["annotations"] = {**(config.get("annotations") or {}), ISOLATION: request.isolation}


def _shown(mount: VolumeMount, own: IdMap | None, notes: list[str]) -> VolumeMount:
    found, note = ids.shown(mount, shifted=own is not None)
    if note:
        notes.append(note)
    return found


def _check_mapped(user: users.ContainerUser, facts: Facts) -> None:
    """Refuse an id that the container's user namespace does not have. Raises UsageError."""
    whose = "this user's containers have" if facts.rootless else "the container has"
    hint = "a range in /etc/subuid and /etc/subgid, and the package uidmap, give more"
    for kind, wanted, lines in (("user", (user.uid,), facts.uid_map), ("group", user.groups, facts.gid_map)):
        for number in wanted:
            if lines and not any(inside <= number < inside + count for inside, _, count in lines):
                raise UsageError(
                    f"{kind} {number} cannot be had: {whose} {sum(line[2] for line in lines)} ids",
                    hint=hint if facts.rootless else "--userns=host has all of them",
                )


def discard(where: Places, record: Container, error: BaseException | None = None) -> None:
    """Remove a container's directory after a failure; what goes wrong is noted on ``error``, or raised without one.

    Ctrl-C meanwhile waits: an impatient person presses it twice.
    """
    from knarr.engine.containers import remove_files

    before = _signal.pthread_sigmask(_signal.SIG_BLOCK, (_signal.SIGINT,))
    try:
        remove_files(where, record)
    except KnarrError as trouble:
        if error is None:
            raise
        error.add_note(f"and while undoing it: {trouble}")
    finally:
        _signal.pthread_sigmask(_signal.SIG_SETMASK, before)


def _record(
    request: Request, ready: Ready | None, command: tuple[str, ...], own: IdMap | None = None, categories: str = ""
) -> Container:
    return Container(
        new_id(),
        random_name() if request.name == "?" else request.name,
        request.image,
        now_rfc3339(),
        command,
        image_digest=ready.image.digest if ready else "",
        image_id=ready.image.id if ready else "",
        layers=(ready.chain,) if ready else (),
        labels=dict(request.options.labels),
        remove=request.remove,
        ids_first=own.uids[0][1] if own else 0,
        ids_count=own.uids[0][2] if own else 0,
        categories=categories,
        network="" if request.image.startswith("bundle:") else request.options.network,
        ports=tuple(tuple(port) for port in request.options.publish),
        owner_pid=os.getpid(),
    )


def _reserve(where: Places, record: Container, *, random: bool) -> tuple[Container, str]:
    """Take the id and the name; a random name that is taken is replaced by another."""
    tries = 20 if random else 0
    while True:
        try:
            return record, records.reserve(where, record)
        except Exists:
            if not tries:
                raise
            tries -= 1
            record = record.replace(name=random_name())


def _hostname(id: str, network: str) -> str:
    """The machine's own name on its own network, so that it resolves; else the short id."""
    if network == "host":
        return os.uname().nodename[:64] or "localhost"
    return id[:12]


def _host_image() -> dict[str, Any]:
    """The configuration of ``host:``."""
    from knarr.image.platform import host_platform

    return {"os": "linux", "architecture": host_platform().architecture, "config": {"Cmd": ["/bin/sh"]}}


def _user(where: Places, ready: Ready | None, text: str) -> users.ContainerUser:
    """Who runs, by the image's own passwd and group, or this machine's for host:; remembered."""
    key = (ready.chain if ready else _unchanged("/etc/passwd", "/etc/group"), text)
    if key in _users:
        return _users[key]
    if ready is None:
        passwd, group = _of_host("/etc/passwd"), _of_host("/etc/group")
    else:
        with images.layers(where, mounted=ready.mounted).view(ready.chain) as view:
            passwd, group = (_in_image(view, path) for path in ("/etc/passwd", "/etc/group"))
    found = users.resolve_user(text, passwd, group)
    if len(_users) > 1000:
        _users.clear()
    _users[key] = found
    return found


def _unchanged(*paths: str) -> str:
    """A text that is another one when a file was changed."""
    facts = []
    for path in paths:
        try:
            one = os.stat(path)
        except OSError:
            facts.append("missing")
        else:
            facts.append(f"{one.st_ino} {one.st_size} {one.st_mtime_ns} {one.st_ctime_ns}")
    return "host: " + ", ".join(facts)


def user_of_directory(rootfs: str, text: str) -> users.ContainerUser:
    """Who ``text`` is by the passwd and group files of an unpacked image. Raises UsageError, NotFound, FileError."""
    from knarr.layer.view import MergedView

    with MergedView.of_paths([rootfs]) as view:
        return users.resolve_user(text, _in_image(view, "/etc/passwd"), _in_image(view, "/etc/group"))


def _in_image(view: Any, path: str) -> bytes:
    """A table of the image; missing is empty, else it must be a file of bounded size (docs/security.md I10)."""
    try:
        data: bytes = view.read_file(path, users.LIMIT)
    except NotFound:
        return b""
    return data


def _of_host(path: str) -> bytes:
    try:
        return read_file(path, users.LIMIT)
    except FileError:
        return b""


def _check(config: dict[str, Any], ready: Ready | None, options: RunOptions) -> None:
    """Refuse what the runtime would refuse, before anything is started; once for each image and set of options."""
    from knarr.spec.validate import config_findings

    try:
        key = hash((ready.image.id if ready else "", options))
    except TypeError:  # a seccomp profile of the user's
        key = 0
    if key and key in _checked:
        return
    findings = config_findings(config)
    if findings:
        raise SpecError("the container's config.json", findings)
    if len(_checked) > 1000:
        _checked.clear()
    _checked.add(key)


def _parsed(data: bytes, path: str) -> dict[str, Any]:
    """A validated config.json, each time a new one; quickly where the bytes are those seen last. Raises SpecError."""
    from marshal import dumps, loads

    from knarr.spec.validate import parse_config

    known = _bundles.get(path)
    if known is not None and known[0] == data:
        config: dict[str, Any] = loads(known[1])  # noqa: S302  # our own bytes, of this process
        return config
    config = parse_config(data, path)
    if len(data) <= _PARSED_LIMIT:
        if len(_bundles) >= _PARSED:
            _bundles.clear()
        _bundles[path] = (data, dumps(config))
    return config


def _prepare_bundle(where: Places, request: Request) -> Prepared:
    """A container of a bundle that somebody else made: its config.json counts, only the process may be changed."""
    folder = os.path.abspath(request.image.removeprefix("bundle:"))
    path = f"{folder}/config.json"
    if not os.path.isdir(folder):
        raise NotFound("bundle", folder)
    config = _parsed(read_file(path, CONFIG_LIMIT), path)
    options = request.options
    changeable = ("command", "env", "workdir", "terminal", "labels")
    if (
        options != RunOptions(**{field: getattr(options, field) for field in changeable})
        or request.platform
        or request.host_show
    ):
        raise UsageError(
            "a bundle's config.json says how it runs; only the command, --env, --workdir and --tty can be changed"
        )
    process = config.get("process")
    if process is None:
        raise Unsupported(f"running {path}", "it has no process")
    if options.command:
        process["args"] = list(options.command)
    if options.env:
        from knarr.engine.containers import variables_of

        variables = variables_of(process.get("env") or (), options.env)
        process["env"] = [f"{name}={value}" for name, value in variables.items()]
    if options.workdir:
        process["cwd"] = options.workdir
    process["terminal"] = options.terminal
    _ask_for(config, request)
    _check(config, None, options)
    record = _record(request, None, tuple(process["args"]))
    record, _ = _reserve(where, record, random=request.name == "?")
    return Prepared(where, record, config, folder, None)
