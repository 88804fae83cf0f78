"""New limits for a container that is there (hot). The decisions are in plan/update.py."""

from __future__ import annotations

import posix
from errno import EBUSY, EINVAL

from knarr.base import fastjson
from knarr.base.errors import InitError, KnarrError, SpecError, Unsupported, WrongStatus
from knarr.base.files import write_atomic
from knarr.plan.devices import device_rules
from knarr.plan.update import asked, before, merged, plan_update
from knarr.runtime import cgroup, record
from knarr.runtime.cgroup_fs import open_group, read, write
from knarr.runtime.monitored import refuse
from knarr.runtime.probe import probe
from knarr.spec.validate import resource_findings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from knarr.plan.cgroup import CgroupDirectory, CgroupPlan, Write

    # descriptor of the group, file, the value it had
    Undo = list[tuple[int, str, str]]


def update(state_root: str, id: str, resources: Any, *, document: str = "resources") -> None:
    """Change the limits of a container that is not stopped; all of them, or on an error none.

    ``resources`` is a value of config.json's linux.resources with what is to change; ``document`` names it in errors.
    The container's config.json says it from then on. Raises NotFound, WrongStatus, SpecError, Unsupported, InitError.
    """
    findings = resource_findings(resources, partial=True)
    if findings:
        raise SpecError(document, findings)
    given = asked(resources)
    fd = record.open_container(state_root, id)
    root_fd = record.open_root(state_root)
    taken = None
    try:
        taken = record.hold(root_fd, fd, id)
        state = record.load(fd, id)
        refuse(state.isolation, "an update")
        status = record.status(fd, state, freezer=False)
        if status not in ("created", "running"):
            raise WrongStatus(id, "update", status, hint="container not running")
        config = record.config(fd)
        # What is asked for must make sense beside what holds already.
        findings = resource_findings(merged((config.get("linux") or {}).get("resources") or {}, given))
        if findings:
            raise SpecError(document, findings)
        host = probe()
        if state.cgroup is None or host.cgroup is None:
            raise Unsupported("changing the limits of this container", "it has no cgroup of its own")
        groups = [(mountpoint, path) for mountpoint, path, _ in state.cgroup["groups"]]
        try:
            changed, plan = plan_update(config, given, host.cgroup, groups, devices=host.privileged)
            if "unit" in state.cgroup:
                _tell_systemd(state.cgroup, config, changed, plan)
            else:
                _apply(plan)
        except (InitError, Unsupported) as error:
            error.pointer = ""  # points into config.json, where this does not come from
            raise
        write_atomic(record.CONFIG, fastjson.dumps(changed), dir_fd=fd)
    finally:
        if taken is not None:
            taken.release()
        posix.close(fd)
        posix.close(root_fd)


def _tell_systemd(recorded: dict[str, Any], config: dict[str, Any], changed: dict[str, Any], plan: CgroupPlan) -> None:
    """Have systemd change what it knows of, then write all of it exactly."""
    from knarr.plan.cgroup_systemd import v1_properties, v2_properties  # cold: only with that driver
    from knarr.runtime import systemd  # cold: the same

    sides = []
    for document in (config, changed):
        resources = (document.get("linux") or {}).get("resources") or {}
        sides.append(v2_properties(resources) if recorded["v2"] else v1_properties(resources, device_rules(document)))
    old, new = sides
    systemd.set_properties(recorded, [each for each in new if each not in old])
    try:
        _apply(plan)
    except BaseException as error:
        try:
            systemd.set_properties(recorded, [each for each in old if each not in new])
        except KnarrError as trouble:
            error.add_note(f"and {trouble}")
        raise


def _apply(plan: CgroupPlan) -> None:
    undo: Undo = []
    opened = {place.mountpoint: open_group(place.mountpoint, place.path) for place in plan.directories}
    places = {place.mountpoint: place for place in plan.directories}
    limits = [limit for limit in plan.writes if not cgroup.is_device_rule(limit)]
    try:
        # What the kernel refuses beside an old value (a limit above the old memory+swap, a quota below the old burst)
        # it may take when the others are there.
        refused = [limit for limit in limits if not _put(opened, places, limit, undo, last=False)]
        for limit in refused:
            _put(opened, places, limit, undo, last=True)
        cgroup.restrict_devices(plan)
    except BaseException as error:
        for fd, file, value in reversed(undo):
            try:
                write(fd, file, value)
            except OSError as trouble:
                error.add_note(
                    f"and {file} could not be put back to {value}: {posix.strerror(trouble.errno or 0).lower()}"
                )
        raise
    finally:
        for fd in opened.values():
            posix.close(fd)


def _put(opened: dict[str, int], places: dict[str, CgroupDirectory], limit: Write, undo: Undo, *, last: bool) -> bool:
    """Write one limit and remember what was there; False when the kernel refuses it and this is not the last try."""
    fd = opened[limit.mountpoint]
    old = None
    for file, value in limit.choices:
        try:
            old = fd, file, before(value, read(fd, file))
            break
        except OSError:
            continue
    try:
        cgroup.write_limit(fd, places[limit.mountpoint], limit)
    except InitError as error:
        if last or error.number not in (EINVAL, EBUSY) or limit.not_below:
            raise
        return False
    if old is not None:
        undo.append(old)
    return True
