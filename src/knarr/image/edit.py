"""Changes to an image's documents (cold): documents in, new documents out; nothing is read, written or timed.

image-spec manifest.md, config.md, annotations.md. Members nobody here knows are kept. Whatever comes out has been
through the same validation as what is read, so no change can make an image that knarr would refuse.
"""

from __future__ import annotations

from copy import deepcopy

from knarr.base import fastjson
from knarr.base.errors import NotFound, SpecError, SpecFinding, UsageError
from knarr.base.record import Record
from knarr.spec import mediatypes
from knarr.spec.image_validate import parse_config, parse_index, parse_manifest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from knarr.spec.image import Descriptor

    Document = dict[str, Any]


class NewLayer(Record):
    """A layer to put into an image: its descriptor, diffID, and what the history shall say of it."""

    descriptor: Descriptor
    diff_id: str
    history: dict[str, Any]


class Keep:
    """The type of ``KEEP``, which says that a field stays what it is; None takes it away."""

    def __repr__(self) -> str:
        return "KEEP"


KEEP = Keep()


def annotated(document: Document, changes: Mapping[str, str | None]) -> Document:
    """A manifest, index or descriptor with annotations set, or taken away (None). Raises UsageError."""
    for key in changes:
        if not key:  # annotations.md: keys MUST be strings that are not empty, by way of their reverse domain
            raise UsageError("an annotation needs a key")
    kept = {**(document.get("annotations") or {}), **changes}
    found = {key: value for key, value in kept.items() if value is not None}
    made = {key: value for key, value in document.items() if key != "annotations"}
    return {**made, "annotations": found} if found else made


def merged(old: Mapping[str, Any] | None, changes: Mapping[str, Any]) -> dict[str, Any] | None:
    """A map with members set or (None) taken away; None when nothing is left. New ones come sorted, after the old."""
    kept = dict(old or {})
    for key in sorted(changes):
        if changes[key] is None:
            kept.pop(key, None)
        else:
            kept[key] = changes[key]
    return kept or None


def environment(old: Sequence[str] | None, changes: Mapping[str, str | None]) -> list[str] | None:
    """Variables set in place, appended, or (None) taken away; None when none is left."""
    left = dict(changes)
    made = []
    for entry in old or ():
        name = entry.partition("=")[0]
        if name not in changes:
            made.append(entry)
        elif name in left:
            value = left.pop(name)
            if value is not None:
                made.append(f"{name}={value}")
    made += [f"{name}={value}" for name, value in left.items() if value is not None]
    return made or None


# config.md: keyword of ``configured`` -> member of "config"
_RUN = {
    "cmd": "Cmd",
    "entrypoint": "Entrypoint",
    "user": "User",
    "workdir": "WorkingDir",
    "stop_signal": "StopSignal",
    "healthcheck": "Healthcheck",
}
# the same for members of the config itself
_TOP = {
    "author": "author",
    "created": "created",
    "architecture": "architecture",
    "os": "os",
    "variant": "variant",
    "os_version": "os.version",
    "os_features": "os.features",
}
_REQUIRED = ("architecture", "os")


def configured(
    config: Document,
    *,
    env: Mapping[str, str | None] | None = None,
    labels: Mapping[str, str | None] | None = None,
    ports: Mapping[str, bool] | None = None,
    volumes: Mapping[str, bool] | None = None,
    **fields: Any,
) -> Document:
    """An image config with other fields.

    ``env`` and ``labels`` set or (None) take away single members; ``ports`` (as 80/tcp) and ``volumes`` add (True) or
    take away (False). ``fields``: cmd, entrypoint, user, workdir, stop_signal, healthcheck, author, created,
    architecture, os, variant, os_version, os_features; KEEP leaves one, None removes it. Raises UsageError for other
    names, SpecError when the outcome is no valid config.
    """
    made = deepcopy(config)
    run: dict[str, Any] = dict(made.get("config") or {})
    for name, value in fields.items():
        if name not in _RUN and name not in _TOP:
            raise UsageError(f"field {name!r} is not one of an image config", hint=f"there is {', '.join(_RUN | _TOP)}")
        if value is KEEP:
            continue
        where, key = (run, _RUN[name]) if name in _RUN else (made, _TOP[name])
        if value is None:
            if name in _REQUIRED:
                raise UsageError(f"an image config needs {key}")
            where.pop(key, None)
        else:
            where[key] = list(value) if isinstance(value, (list, tuple)) else value
    sets: dict[str, Any] = {}
    if env:
        sets["Env"] = environment(run.get("Env"), env)
    if labels:
        sets["Labels"] = merged(run.get("Labels"), labels)
    for key, changes in (("ExposedPorts", ports), ("Volumes", volumes)):
        if changes:
            sets[key] = merged(run.get(key), {name: {} if add else None for name, add in changes.items()})
    for key, value in sets.items():
        if value is None:
            run.pop(key, None)
        else:
            run[key] = value
    if run or "config" in made:
        made["config"] = run
    return checked_config(made)


def checked_config(config: Document) -> Document:
    """The config, once it is known to be valid; raises SpecError."""
    parse_config(fastjson.dumps(config), "the changed image config")
    return config


def checked_manifest(manifest: Document) -> Document:
    """The manifest, once it is known to be valid; raises SpecError."""
    parse_manifest(fastjson.dumps(manifest), "the changed manifest")
    return manifest


def checked_index(index: Document) -> Document:
    """The index, once it is known to be valid; raises SpecError."""
    parse_index(fastjson.dumps(index), "the changed index")
    return index


# -- layers and history ------------------------------------------------------------------------------------


def history_places(config: Document) -> list[int]:
    """For each layer, bottom first, the place of its entry in the history; -1 where the history says nothing."""
    history = config.get("history") or []
    places = [number for number, entry in enumerate(history) if not entry.get("empty_layer")]
    count = len(config["rootfs"]["diff_ids"])
    return (places + [-1] * count)[:count]


def replaced_layers(
    manifest: Document, config: Document, start: int, stop: int, new: Sequence[NewLayer]
) -> tuple[Document, Document]:
    """Documents with layers ``start`` to ``stop`` (not included) replaced by ``new``, the history along with them.

    History entries of the replaced layers go, and with them the empty ones between them. What comes after stays.
    Raises SpecError when the outcome is not valid, as for more than 127 layers.
    """
    manifest, config = deepcopy(manifest), deepcopy(config)
    places = history_places(config)
    manifest["layers"][start:stop] = [layer.descriptor for layer in new]
    history = config.get("history") or []
    # A history that does not account for the layers there are gets no entry that would seem to.
    if -1 not in places:
        first = places[start] if start < len(places) else len(history)
        last = places[stop - 1] + 1 if start < stop else first
        history = [*history[:first], *(layer.history for layer in new if layer.history), *history[last:]]
    config["rootfs"]["diff_ids"][start:stop] = [layer.diff_id for layer in new]
    if history:
        config["history"] = history
    elif "history" in config:
        del config["history"]
    return checked_manifest(manifest), checked_config(config)


def edited_history(
    config: Document,
    changes: Mapping[int, Mapping[str, str | None]],
    *,
    add: Sequence[Mapping[str, str]] = (),
    clear: bool = False,
) -> Document:
    """A config with other history: members of entries set or (None) taken away, entries of no layer added at the end.

    ``clear`` takes all of it away first. Raises NotFound for an entry there is not, SpecError, UsageError.
    """
    made = deepcopy(config)
    history: list[dict[str, Any]] = [] if clear else list(made.get("history") or [])
    known = ("created", "author", "created_by", "comment")
    for number, members in changes.items():
        if not -len(history) <= number < len(history):
            raise NotFound("history entry", str(number), among=f"{len(history)} of them, the first is 0")
        history[number] = merged(history[number], _known(members, known)) or {}
    history += [{**_known(entry, known), "empty_layer": True} for entry in add]
    if history:
        made["history"] = history
    else:
        made.pop("history", None)
    return checked_config(made)


def _known(members: Mapping[str, Any], known: Sequence[str]) -> dict[str, Any]:
    for name in members:
        if name not in known:
            raise UsageError(f"{name!r} is not a member of a history entry", hint=f"there is {', '.join(known)}")
    return dict(members)


def shared_layers(config: Document, base: Document) -> int:
    """How many layers, from the bottom, two configs have in common, by diffID."""
    count = 0
    for ours, theirs in zip(config["rootfs"]["diff_ids"], base["rootfs"]["diff_ids"], strict=False):
        if ours != theirs:
            break
        count += 1
    return count


def rebased(
    image: tuple[Document, Document], old: tuple[Document, Document], new: tuple[Document, Document]
) -> tuple[Document, Document]:
    """The image (manifest, config) with the layers of its old base replaced by those of a new one.

    Config fields stay the image's own, except where they are just what the old base had: then they become the new
    base's. The variables of both are joined, the image's own last. Raises UsageError when the image is not built
    on ``old``, SpecError.
    """
    (manifest, config), (_old_manifest, old_config), (new_manifest, new_config) = image, old, new
    count = len(old_config["rootfs"]["diff_ids"])
    if shared_layers(config, old_config) != count:
        raise UsageError(
            "the image is not built on that base",
            hint=f"{shared_layers(config, old_config)} of the base's {count} layers are its own lowest ones",
        )
    if (config["os"], config["architecture"]) != (new_config["os"], new_config["architecture"]):
        theirs = f"{new_config['os']}/{new_config['architecture']}"
        raise UsageError(f"the new base is for {theirs}, the image for {config['os']}/{config['architecture']}")
    made_manifest, made_config = deepcopy(manifest), deepcopy(config)
    layers = [_like(layer, manifest) for layer in new_manifest["layers"]]
    made_manifest["layers"] = [*layers, *manifest["layers"][count:]]
    made_config["rootfs"]["diff_ids"] = [
        *new_config["rootfs"]["diff_ids"],
        *config["rootfs"]["diff_ids"][count:],
    ]
    above = (config.get("history") or [])[len(old_config.get("history") or []) :]
    history = [*(new_config.get("history") or []), *above]
    if history:
        made_config["history"] = history
    made_config["config"] = _rebased_run(
        config.get("config") or {}, old_config.get("config") or {}, new_config.get("config") or {}
    )
    return checked_manifest(made_manifest), checked_config(made_config)


def _rebased_run(own: Document, old: Document, new: Document) -> Document:
    made: Document = {}
    for key in dict.fromkeys((*own, *new)):
        value = new.get(key) if own.get(key) == old.get(key) else own.get(key)
        if key == "Env" and own.get(key) != old.get(key):
            before, mine = _variables(old.get("Env")), _variables(own.get("Env"))
            changed: dict[str, str | None] = {
                name: value for name, value in mine.items() if before.get(name) != value
            } | dict.fromkeys(before.keys() - mine.keys())
            value = environment(new.get("Env"), changed)
        elif key in ("Labels", "ExposedPorts", "Volumes") and isinstance(own.get(key), dict):
            was = old.get(key) or {}
            ours = {name: item for name, item in own[key].items() if name not in was or was[name] != item}
            value = merged(new.get(key), {**ours, **dict.fromkeys(was.keys() - own[key].keys())})
        if value is not None:
            made[key] = value
    return made


def _variables(entries: Sequence[str] | None) -> dict[str, str]:
    return {name: value for name, _equals, value in (entry.partition("=") for entry in entries or ())}


def _like(descriptor: Descriptor, manifest: Document) -> Descriptor:
    """A layer's descriptor in the words, OCI's or Docker's, that a manifest uses."""
    docker = manifest.get("mediaType") == mediatypes.DOCKER_MANIFEST
    names = mediatypes.TO_DOCKER if docker else mediatypes.TO_OCI
    made = deepcopy(descriptor)
    made["mediaType"] = names.get(descriptor["mediaType"], descriptor["mediaType"])
    if docker and made["mediaType"] == mediatypes.LAYER_ZSTD:
        raise SpecError("manifest", [SpecFinding("/layers", "Docker's manifests have no zstd layers")])
    return made


# -- indexes -----------------------------------------------------------------------------------------------


def new_index(entries: Sequence[Descriptor], *, annotations: Mapping[str, str] | None = None) -> Document:
    """An image index of these entries (image-index.md)."""
    made: Document = {"schemaVersion": 2, "mediaType": mediatypes.INDEX, "manifests": list(entries)}
    if annotations:
        made["annotations"] = dict(annotations)
    return checked_index(made)


def index_with(index: Document, entry: Descriptor) -> Document:
    """An index with one more entry; one of the same digest is replaced where it stands."""
    made = deepcopy(index)
    entries: list[Descriptor] = made["manifests"]
    for number, old in enumerate(entries):
        if old["digest"] == entry["digest"]:
            entries[number] = entry
            return checked_index(made)
    entries.append(entry)
    return checked_index(made)


def index_without(index: Document, digests: Sequence[str]) -> Document:
    """An index without the entries of these digests; raises NotFound."""
    there = {entry["digest"] for entry in index["manifests"]}
    for digest in digests:
        if digest not in there:
            raise NotFound("entry", digest, among=", ".join(sorted(there)) or "nothing in the index")
    made = deepcopy(index)
    made["manifests"] = [entry for entry in made["manifests"] if entry["digest"] not in digests]
    return checked_index(made)
