"""knarr: OCI images, bundles and containers from Python, without a daemon (hot).

The public names are loaded when they are first used, so that ``import knarr`` stays cheap and
``knarr-runtime``, which imports only ``knarr.cli``, pays nothing for them.
"""

# No "from __future__" here and in cli/main.py: it reads a file, and Ctrl-C meanwhile would be a traceback.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from knarr.base import errors as errors
    from knarr.base.errors import KnarrError as KnarrError
    from knarr.base.errors import TimedOut as TimedOut
    from knarr.engine import aio as aio
    from knarr.engine.api import Container as Container
    from knarr.engine.api import Result as Result
    from knarr.engine.api import Timings as Timings
    from knarr.engine.api import pull as pull
    from knarr.engine.api import run as run
    from knarr.engine.imaging.compare import diff as diff
    from knarr.engine.imaging.image import Image as Image
    from knarr.engine.imaging.image import Index as Index
    from knarr.engine.imaging.image import Layer as Layer
    from knarr.engine.imaging.validate import validate as validate
    from knarr.engine.registries import Registry as Registry
    from knarr.engine.registries import copy as copy
    from knarr.engine.stores import Store as Store

__version__ = "0.1.0"

# public name -> module that defines it; the block above tells type checkers the same, a test compares the two.
_EXPORTS = {
    "Container": "knarr.engine.api",
    "Image": "knarr.engine.imaging.image",
    "Index": "knarr.engine.imaging.image",
    "KnarrError": "knarr.base.errors",
    "Layer": "knarr.engine.imaging.image",
    "Registry": "knarr.engine.registries",
    "Result": "knarr.engine.api",
    "Store": "knarr.engine.stores",
    "TimedOut": "knarr.base.errors",
    "Timings": "knarr.engine.api",
    "aio": "knarr.engine",
    "copy": "knarr.engine.registries",
    "diff": "knarr.engine.imaging.compare",
    "errors": "knarr.base",
    "pull": "knarr.engine.api",
    "run": "knarr.engine.api",
    "validate": "knarr.engine.imaging.validate",
}

__all__ = [
    "Container",
    "Image",
    "Index",
    "KnarrError",
    "Layer",
    "Registry",
    "Result",
    "Store",
    "TimedOut",
    "Timings",
    "__version__",
    "aio",
    "copy",
    "diff",
    "errors",
    "pull",
    "run",
    "validate",
]


def __getattr__(name: str) -> object:
    """Import the module that defines a public name, once, and keep the name here (PEP 562)."""
    import sys

    if name not in _EXPORTS:
        raise AttributeError(f"module 'knarr' has no attribute {name!r}")
    module = _EXPORTS[name]
    __import__(module)
    if not hasattr(sys.modules[module], name):
        __import__(f"{module}.{name}")  # the name is a module itself: aio, errors
    value: object = getattr(sys.modules[module], name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
