"""knarr: OCI images, bundles and containers from Python, without a daemon (hot).

The public names are loaded when they are first used, so that ``import knarr`` stays cheap and
``knarr-runtime``, which imports only ``knarr.cli``, pays nothing for them.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from knarr.base.errors import KnarrError as KnarrError

__version__ = "0.1.0"

# public name -> module that defines it; the block above tells type checkers the same, a test compares the two.
_EXPORTS = {
    "KnarrError": "knarr.base.errors",
}

__all__ = ["KnarrError", "__version__"]


def __getattr__(name: str) -> object:
    """Import the module that defines a public name, once, and keep the name here (PEP 562)."""
    import sys

    if name not in _EXPORTS:
        raise AttributeError(f"module 'knarr' has no attribute {name!r}")
    module = _EXPORTS[name]
    __import__(module)
    value: object = getattr(sys.modules[module], name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
