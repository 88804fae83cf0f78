r"""``knarr image sync``: many repositories from a list, in YAML.

    - from: docker.io/library/busybox         a repository, or one image: NAME:TAG, NAME@DIGEST, oci:DIR:TAG, …
      to: registry.local:5000/hub/busybox     where to; without it, below the target given on the command line
      tags: ["1.36", "1.37"]                  these tags; all of them without this and match
      match: ^1\.[0-9]+$                       tags with this in them (a regular expression)
      platforms: [linux/amd64]                these platforms; all without it
      referrers: true                         also what refers to the images

skopeo's form is understood too: a mapping of registries, each with images, images-by-tag-regex and tls-verify.
"""

from __future__ import annotations

import re

from knarr.base.errors import Interrupted, InvalidReference, KnarrError, NotFound, SpecError, SpecFinding
from knarr.base.files import read_file
from knarr.base.record import Record
from knarr.engine.copying import Access, copy, options_of
from knarr.engine.registries import Registry
from knarr.image.reference import parse_reference

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from knarr.engine.paths import Places
    from knarr.image.copy import Copied
    from knarr.image.reference import Reference
    from knarr.image.transfer import Progress

_LIMIT = 1 << 20
ENTRIES_LIMIT = 10_000
_KEYS = frozenset(("from", "to", "tags", "match", "platforms", "referrers", "insecure"))
_SKOPEO_KEYS = frozenset(("images", "images-by-tag-regex", "images-by-semver", "credentials", "tls-verify", "cert-dir"))


class Entry(Record):
    """One line of a list: what to copy. ``where`` is its JSON pointer; ``tags`` is None for all that ``match``.

    ``own`` when the line said itself where to.
    """

    where: str
    source: str
    target: str
    tags: tuple[str, ...] | None = None
    match: str = ""
    platforms: tuple[str, ...] = ()
    referrers: bool = False
    insecure: bool = False
    own: bool = False


class Job(Record):
    """One image to copy."""

    source: str
    target: str
    entry: Entry


class Outcome(Record):
    """What became of a job: ``copied``, or the ``error``."""

    job: Job
    copied: Copied | None
    error: KnarrError | None = None


def read_list(path: str, target: str = "") -> list[Entry]:
    """Read a list; ``target`` is where entries go that do not say it. Raises FileError, SpecError with all findings."""
    import yaml

    data = read_file(path, _LIMIT)
    try:
        document = yaml.load(data, Loader=_strict(yaml))  # noqa: S506  # a SafeLoader
    except yaml.YAMLError as error:
        why = " ".join(str(error).split())
        raise SpecError(path, [SpecFinding("", f"is not YAML: {why[:200]}")]) from None
    except (RecursionError, ValueError):
        raise SpecError(path, [SpecFinding("", "is not YAML that makes sense here")]) from None
    findings: list[SpecFinding] = []
    entries: list[Entry] = []
    if isinstance(document, list):
        for number, value in enumerate(document[:ENTRIES_LIMIT]):
            entry = _entry(value, f"/{number}", target, findings)
            if entry is not None:
                entries.append(entry)
    elif isinstance(document, dict):
        for registry, value in document.items():
            entries.extend(_skopeo(registry, value, target, findings))
    else:
        findings.append(SpecFinding("", "must be a list, or a mapping of registries"))
    if findings:
        raise SpecError(path, findings)
    if not entries:
        raise SpecError(path, [SpecFinding("", "names nothing to copy")])
    return entries


def _strict(yaml: Any) -> Any:
    """Return a loader of plain values that refuses a key given twice."""

    class Strict(yaml.SafeLoader):  # type: ignore[misc]  # known at run time only
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:  # noqa: FBT001, FBT002  # PyYAML's own signature
            keys = [key.value for key, _ in node.value if isinstance(key.value, str)]
            if len(keys) != len(set(keys)):
                raise yaml.constructor.ConstructorError(None, None, "a key is given twice", node.start_mark)
            return super().construct_mapping(node, deep)

    return Strict


def _entry(value: Any, where: str, target: str, findings: list[SpecFinding]) -> Entry | None:
    before = len(findings)

    def wrong(key: str, why: str) -> None:
        findings.append(SpecFinding(f"{where}/{key}" if key else where, why))

    if not isinstance(value, dict):
        wrong("", "must be a mapping with from")
        return None
    for key in value:
        if key not in _KEYS:
            wrong(str(key), f"is not known; there is {', '.join(sorted(_KEYS))}")
    source: Any = value.get("from")
    to = value.get("to", "")
    tags, match = value.get("tags"), value.get("match", "")
    platforms = value.get("platforms", [])
    for key, text in (("from", source), ("to", to), ("match", match)):
        if not isinstance(text, str) or (key == "from" and not text):
            wrong(key, "must be a text")
    if tags is not None and not _texts(tags):
        wrong("tags", "must be a list of texts (numbers in quotes)")
    if not _texts(platforms):
        wrong("platforms", "must be a list of texts")
    for key in ("referrers", "insecure"):
        if not isinstance(value.get(key, False), bool):
            wrong(key, "must be true or false")
    if len(findings) == before:
        _check_pattern(match, f"{where}/match", findings)
        if tags is not None and match:
            wrong("match", "cannot stand beside tags")
        if not to and not target:
            wrong("to", "is missing, and no target was given for all")
    if len(findings) > before:
        return None
    chosen = None if tags is None else tuple(tags)
    made = Entry(where, source, to or target, chosen, match, tuple(platforms), value.get("referrers", False))
    made = made.replace(insecure=value.get("insecure", False), own=bool(to))
    try:
        ref = parse_reference(source)
        below: Entry = made if to else made.replace(target=_below(target, ref))
        return below
    except InvalidReference as error:
        wrong("from", f"{source!r}: {error.rule}")
    return None


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value) and len(value) <= ENTRIES_LIMIT


def _check_pattern(pattern: str, where: str, findings: list[SpecFinding]) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        findings.append(SpecFinding(where, f"is no regular expression: {error}"))


def _skopeo(registry: Any, value: Any, target: str, findings: list[SpecFinding]) -> Iterator[Entry]:
    """Yield the entries of one registry in the form of skopeo-sync(1)."""
    where = f"/{registry}"
    if not isinstance(registry, str) or not isinstance(value, dict):
        findings.append(SpecFinding(where, "must be a registry's name with a mapping"))
        return
    for key in value:
        if key not in _SKOPEO_KEYS or key in ("images-by-semver", "credentials", "cert-dir"):
            hint = "log in with knarr login" if key == "credentials" else "it is not understood here"
            findings.append(SpecFinding(f"{where}/{key}", hint))
    if not target:
        findings.append(SpecFinding(where, "needs a target, which this form cannot name"))
        return
    insecure = value.get("tls-verify") is False
    for key in ("images", "images-by-tag-regex"):
        repositories = value.get(key) or {}
        if not isinstance(repositories, dict):
            findings.append(SpecFinding(f"{where}/{key}", "must be a mapping"))
            continue
        for name, chosen in repositories.items():
            made = {"from": f"{registry}/{name}", "insecure": insecure}
            if key == "images" and chosen:
                made["tags"] = chosen
            elif key != "images":
                made["match"] = chosen
            entry = _entry(made, f"{where}/{key}/{name}", target, findings)
            if entry is not None:
                yield entry


def _below(target: str, ref: Reference) -> str:
    """Return the place of an entry that does not say it: its repository below the target."""
    if ref.transport != "docker":
        raise InvalidReference(str(ref), "what is not in a registry needs a to of its own")
    if target.startswith("oci:"):
        return f"{target}:{ref.registry}/{ref.repository}"
    if target.startswith("dir:"):
        return f"{target.rstrip('/')}/{ref.registry}/{ref.repository}"
    if target.startswith("store:") or target == "store":
        return f"store:{ref.registry}/{ref.repository}"
    return f"{target.rstrip('/')}/{ref.repository}"


def jobs_of(entry: Entry, *, insecure: bool = False) -> list[Job]:
    """Return the images of an entry; asks the registry for its tags when all or some of them are meant.

    Raises NotFound when no tag fits, RegistryError.
    """
    ref = parse_reference(entry.source)
    named = ref.transport != "docker" or ref.digest or entry.source.rpartition("/")[2].count(":")
    if named and entry.own and entry.target.startswith("oci:") and ":" in entry.target[len("oci:") :]:
        return [Job(entry.source, entry.target, entry)]
    if named:
        return [
            Job(entry.source, _with(entry.target, ref.digest or ref.tag, repository=ref.transport == "docker"), entry)
        ]
    tags: list[str] = list(entry.tags or ())
    if entry.tags is None:
        registry = Registry(ref.registry, insecure=insecure or entry.insecure)
        tags = [tag for tag in registry.tags(ref.repository) if re.search(entry.match, tag)]
        if not tags:
            raise NotFound("tag", f"{entry.match or 'of any name'} in {entry.source}")
    base = f"docker://{ref.registry}/{ref.repository}"
    made = []
    for tag in tags:
        digest = tag if tag.startswith(("sha256:", "sha512:")) else ""
        made.append(
            Job(f"{base}@{tag}" if digest else f"{base}:{tag}", _with(entry.target, tag, repository=True), entry)
        )
    return made


def _with(target: str, tag: str, *, repository: bool) -> str:
    """Return a target with the image's tag, unless it has one, or takes none."""
    transport = target.partition(":")[0]
    if not repository or not tag:
        return target
    if transport == "dir":
        return f"{target}:{tag.replace(':', '-')}"
    name = target.removeprefix("docker://").rpartition("/")[2]
    is_name = transport not in ("oci", "oci-archive", "docker-archive")
    if is_name and (":" in name or "@" in name):
        return target
    if transport == "oci" and ":" not in target.partition(":")[2]:
        return f"{target}:{tag.replace(':', '-')}"
    return (
        f"{target}@{tag}" if tag.startswith(("sha256:", "sha512:")) and is_name else f"{target}:{tag.replace(':', '-')}"
    )


def sync(
    where: Places,
    entries: list[Entry],
    *,
    dry_run: bool = False,
    insecure: bool = False,
    progress: Progress | None = None,
    told: Callable[[Outcome], None] | None = None,
) -> list[Outcome]:
    """Copy everything a list names, one image after the other; an error ends its image and no other.

    ``told`` hears of each image. Raises UsageError for options that make no sense.
    """
    done = []
    for entry in entries:
        options = options_of(entry.platforms, all=not entry.platforms, referrers=entry.referrers, dry_run=dry_run)
        access = Access(insecure=insecure or entry.insecure)
        try:
            jobs = jobs_of(entry, insecure=insecure)
        except KnarrError as error:
            jobs = []
            done.append(Outcome(Job(entry.source, entry.target, entry), None, error))
            if told is not None:
                told(done[-1])
        for job in jobs:
            try:
                copied = copy(
                    where,
                    job.source,
                    job.target,
                    options,
                    source_access=access,
                    target_access=access,
                    progress=progress,
                )
                done.append(Outcome(job, copied))
            except Interrupted:
                raise
            except KnarrError as error:
                done.append(Outcome(job, None, error))
            if told is not None:
                told(done[-1])
    return done
