"""``knarr-runtime plan``: what would be done for a bundle, each operation with the field that asks for it (hot)."""

from __future__ import annotations

import posix

from knarr.base import fastjson
from knarr.base.errors import UsageError
from knarr.base.ids import check_id
from knarr.cli.runtime import making
from knarr.plan.container import Options, plan_container
from knarr.runtime import cgroup
from knarr.runtime.create import compiled_seccomp
from knarr.runtime.probe import probe_for

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from knarr.cli.runtime.command import Context
    from knarr.plan.cgroup import CgroupPlan


def run(options: dict[str, Any], operands: list[str], context: Context) -> int:
    """Print the plan of ``create``; nothing is done, and no privilege is needed."""
    form = options.get("format", "text")
    if form not in ("text", "json"):
        raise UsageError(f"option --format: {form!r} is neither text nor json")
    id = check_id(options.get("id", "ID"))
    bundle, config, _ = making.read_bundle({"bundle": operands[0]})
    host = probe_for(config, None).replace(capabilities=-1, bounding=-1)  # what the caller may not do, another may
    groups = cgroup.plan(config, host, id, rootless=context.rootless, manager=context.cgroup_manager)
    plan = plan_container(
        config,
        host,
        id=id,
        bundle=bundle,
        options=Options(terminal_slot=bool(config["process"].get("terminal")), wait_start=True, early=True),
        seccomp=compiled_seccomp(config, host),
        cgroup=groups,
    )
    steps = _cgroup_steps(groups) if groups is not None else []
    steps += [(each.pointer, f"network device {each.name} becomes {each.inside}") for each in plan.net_devices]
    if plan.rdt is not None:
        steps.append(("/linux/intelRdt", f"resctrl group /{plan.rdt.group}"))
        steps += [(pointer, f"resctrl schemata {line}") for line, pointer in plan.rdt.schemata]
    if form == "json":
        shown: dict[str, Any] = {
            "cgroup": [{"pointer": pointer, "does": text} for pointer, text in steps],
            "slots": [*plan.slots, *(plan.late or ())],
            "operations": [
                {
                    "operation": op.kind,
                    "pointer": op.pointer,
                    **{
                        name: f"{len(value)} bytes" if isinstance(value, bytes) else value
                        for name, value in op.arguments().items()
                    },
                }
                for op in plan.ops
            ],
        }
        posix.write(1, fastjson.dumps(shown, indent=True) + b"\n")
        return 0
    lines = [*steps, *((op.pointer, op.describe()) for op in plan.ops)]
    width = min(max(len(pointer) for pointer, _ in lines), 40)
    text = "".join(f"{pointer.ljust(width)}  {does}\n" for pointer, does in lines)
    posix.write(1, text.encode("utf-8", "surrogateescape"))
    return 0


def _cgroup_steps(groups: CgroupPlan) -> list[tuple[str, str]]:
    """(pointer, what is done) of the part of the plan that the runtime itself carries out."""
    steps = [("/linux/cgroupsPath", f"cgroup {group.mountpoint}{group.path}") for group in groups.directories]
    places = {group.mountpoint: group.path for group in groups.directories}
    for write in groups.writes:
        for file, value in write.choices[:1]:
            steps.append(
                (write.pointer, f"cgroup write {value} to {write.mountpoint}{places[write.mountpoint]}/{file}")
            )
    if groups.device_mount:
        steps.append(("/linux/resources/devices", f"cgroup devices {len(groups.device_rules)} rules"))
    return steps
