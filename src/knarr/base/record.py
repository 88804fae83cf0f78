"""Immutable value records that are cheap to define (hot).

Sixty frozen dataclasses cost 63 ms to load, sixty of these 1.5 ms; a runtime that is called five
times per container cannot pay the difference.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, dataclass_transform
else:

    def dataclass_transform(**_options: object) -> object:
        """Stand in for typing's: only type checkers act on it."""
        return lambda cls: cls


@dataclass_transform(frozen_default=True)
class _RecordType(type):
    """Turns annotations into slots and defaults; type checkers see a frozen dataclass."""

    def __new__(mcs, name: str, bases: tuple[type, ...], space: dict[str, Any]) -> _RecordType:
        inherited: tuple[str, ...] = ()
        defaults: dict[str, Any] = {}
        for base in bases:
            inherited += getattr(base, "_fields", ())
            defaults.update(getattr(base, "_defaults", {}))
        own = tuple(space.get("__annotations__", ()))
        for field in own:
            if field in space:
                defaults[field] = space.pop(field)
        space["__slots__"] = own
        space["_fields"] = space["__match_args__"] = inherited + own
        space["_defaults"] = defaults
        return super().__new__(mcs, name, bases, space)


class Record(metaclass=_RecordType):
    """An immutable value: fields by annotation, equality and hash by value, a readable repr."""

    def __init__(self, *values: Any, **named: Any) -> None:
        cls = type(self)
        fields: tuple[str, ...] = cls._fields  # type: ignore[attr-defined]  # made by the metaclass
        if len(values) > len(fields):
            raise TypeError(f"{cls.__name__} takes {len(fields)} values, got {len(values)}")
        put = object.__setattr__
        for field, value in zip(fields, values, strict=False):
            put(self, field, value)
        for field in fields[len(values) :]:
            if field in named:
                put(self, field, named.pop(field))
            elif field in cls._defaults:  # type: ignore[attr-defined]
                put(self, field, cls._defaults[field])  # type: ignore[attr-defined]
            else:
                raise TypeError(f"{cls.__name__} needs {field}")
        if named:
            raise TypeError(f"{cls.__name__} has no field {next(iter(named))}")

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__}.{name} cannot be set: records are immutable")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__}.{name} cannot be deleted: records are immutable")

    def __iter__(self) -> Iterator[Any]:
        return iter([getattr(self, field) for field in type(self)._fields])  # type: ignore[attr-defined]

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and list(self) == list(other)

    def __hash__(self) -> int:
        return hash((type(self), *self))

    def __repr__(self) -> str:
        pairs = zip(type(self)._fields, self, strict=True)  # type: ignore[attr-defined]
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in pairs)})"

    def replace(self, **changes: Any) -> Any:
        """Return a copy with these fields changed."""
        cls = type(self)
        made = cls.__new__(cls)
        put = object.__setattr__
        for field in cls._fields:  # type: ignore[attr-defined]
            put(made, field, changes.pop(field) if field in changes else getattr(self, field))
        if changes:
            raise TypeError(f"{cls.__name__} has no field {next(iter(changes))}")
        return made
