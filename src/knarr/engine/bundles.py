"""Images as plain directories: the files alone, or a runtime bundle that any OCI runtime can run."""

from __future__ import annotations

import os
from errno import EINVAL, ENOTEMPTY

from knarr.base import fastjson
from knarr.base.errors import FileError, KnarrError, SpecError, UsageError
from knarr.base.files import write_atomic
from knarr.bundle.convert import to_runtime_spec
from knarr.bundle.selinux import Labels, label_of_bundle
from knarr.engine import host
from knarr.engine.paths import open_store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from knarr.bundle.options import RunOptions
    from knarr.engine.paths import Places
    from knarr.image.catalog import Image

VERSION = "1.0.2"
"""ociVersion of a bundle for other runtimes: some refuse a number they do not know, all ignore fields they do not."""


def unpack(where: Places, image: Image, target: str) -> tuple[str, ...]:
    """Write the merged files of an image into ``target``, a new or empty directory; returns warnings.

    Raises FileError, Unsupported, FormatError, DigestMismatch; ``target`` is as it was then.
    """
    from knarr.layer.source import layers_of
    from knarr.layer.unpack import materialise

    layers = layers_of(open_store(where), image.manifest, image.image_config())
    return materialise(layers, target, ids=host.id_map())


def write_bundle(where: Places, image: Image, folder: str, options: RunOptions) -> tuple[str, ...]:
    """Write ``folder``/rootfs and ``folder``/config.json; ``folder`` must be new or empty. Returns notes.

    config.json leaves out what older runtimes refuse (the time namespace). Nothing is left after a failure.
    """
    return fill_bundle(folder, options, image.image_config(), lambda rootfs: unpack(where, image, rootfs))


def fill_bundle(
    folder: str, options: RunOptions, document: dict[str, Any], fill: Callable[[str], tuple[str, ...]]
) -> tuple[str, ...]:
    """Write a bundle of an image config ``document``, and of the files that ``fill`` puts into the rootfs it is given.

    Returns notes, those of ``fill`` first. Raises as ``write_bundle``; nothing is left then.
    """
    from knarr.engine.create import user_of_directory
    from knarr.layer.unpack import unpacker
    from knarr.spec.validate import config_findings

    made = _claim(folder)
    rootfs = f"{folder}/rootfs"
    try:
        notes = fill(rootfs)
        text = options.user or str((document.get("config") or {}).get("User") or "")
        facts = host.facts(privileged=options.privileged).replace(time_namespace=False)
        facts = facts.replace(selinux=Labels(label_of_bundle(options.selinux)))
        if host.host().selinux and any(mount.relabel for mount in options.mounts):
            raise UsageError("a bundle's volumes get no SELinux labels", hint="leave out :z and :Z, or use knarr run")
        conversion = to_runtime_spec(document, options, user_of_directory(rootfs, text), facts)
        config = {**conversion.config, "ociVersion": VERSION}
        findings = config_findings(config)
        if findings:
            raise SpecError(f"{folder}/config.json", findings)
        write_atomic(f"{folder}/config.json", fastjson.dumps(config, indent=True) + b"\n", mode=0o644)
    except BaseException:
        worker = unpacker(host.id_map())
        try:
            worker.remove(rootfs)
            if made:
                os.rmdir(folder)
        except (OSError, KnarrError):
            pass  # the first error is the one to tell
        finally:
            worker.close()
        raise
    return (*notes, *conversion.notes)


def _claim(folder: str) -> bool:
    """Make the directory, or see that it is empty; whether it was made. Raises FileError."""
    try:
        try:
            os.mkdir(folder, 0o755)
        except FileExistsError:
            if os.listdir(folder):
                raise FileError("write a bundle to", folder, ENOTEMPTY) from None
            return False
    except OSError as error:
        raise FileError("write a bundle to", folder, error.errno or EINVAL) from None
    return True
