# ruff: noqa: D101 — each class is one object of the specification, which describes it
"""TypedDicts of the image specification's documents, for mypy and editors (cold; imported under TYPE_CHECKING only).

image-spec 1.1: descriptor.md, manifest.md, image-index.md, config.md, image-layout.md. Documents are plain dicts at
run time; ``image_validate`` reads and checks them.
"""

from __future__ import annotations

from typing import Any, NotRequired, Required, TypedDict

# Written as calls because "os.version" is no name.
Platform = TypedDict(
    "Platform",
    {
        "architecture": Required[str],
        "os": Required[str],
        "os.version": NotRequired[str],
        "os.features": NotRequired[list[str]],
        "variant": NotRequired[str],
    },
)


class Descriptor(TypedDict):
    mediaType: str
    digest: str
    size: int
    urls: NotRequired[list[str]]
    annotations: NotRequired[dict[str, str]]
    data: NotRequired[str]
    artifactType: NotRequired[str]
    platform: NotRequired[Platform]


class Manifest(TypedDict):
    schemaVersion: int
    mediaType: NotRequired[str]
    artifactType: NotRequired[str]
    config: Descriptor
    layers: list[Descriptor]
    subject: NotRequired[Descriptor]
    annotations: NotRequired[dict[str, str]]


class Index(TypedDict):
    schemaVersion: int
    mediaType: NotRequired[str]
    artifactType: NotRequired[str]
    manifests: list[Descriptor]
    subject: NotRequired[Descriptor]
    annotations: NotRequired[dict[str, str]]


class Layout(TypedDict):
    imageLayoutVersion: str


class Healthcheck(TypedDict, total=False):
    Test: list[str]
    Interval: int
    Timeout: int
    StartPeriod: int
    StartInterval: int
    Retries: int


class RunConfig(TypedDict, total=False):
    User: str | None
    ExposedPorts: dict[str, dict[str, Any]] | None
    Env: list[str] | None
    Entrypoint: list[str] | None
    Cmd: list[str] | None
    Volumes: dict[str, dict[str, Any]] | None
    WorkingDir: str | None
    Labels: dict[str, str] | None
    StopSignal: str | None
    StopTimeout: int | None
    ArgsEscaped: bool | None
    Healthcheck: Healthcheck | None
    Shell: list[str] | None


class RootFS(TypedDict):
    type: str
    diff_ids: list[str]


class History(TypedDict, total=False):
    created: str | None
    author: str | None
    created_by: str | None
    comment: str | None
    empty_layer: bool | None


ImageConfig = TypedDict(
    "ImageConfig",
    {
        "created": NotRequired[str | None],
        "author": NotRequired[str | None],
        "architecture": Required[str],
        "os": Required[str],
        "os.version": NotRequired[str | None],
        "os.features": NotRequired[list[str] | None],
        "variant": NotRequired[str | None],
        "config": NotRequired[RunConfig | None],
        "rootfs": Required[RootFS],
        "history": NotRequired[list[History] | None],
    },
)
