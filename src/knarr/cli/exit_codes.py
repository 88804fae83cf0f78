"""Exit codes of both commands by error class, in one place; a test demands an entry for every class (hot).

``knarr-runtime`` answers as runc does: 1 for every error, 255 for an ``exec`` that could not be done; the container's
or the command's own code otherwise. ``knarr`` answers as podman and docker do: 125 for a failure of knarr itself,
126 for a program that cannot be executed, 127 for one that does not exist.
"""

from __future__ import annotations

from knarr.base import errors

RUNTIME_ERROR = 1
RUNTIME_EXEC_ERROR = 255
ENGINE_ERROR = 125

_ENGINE: dict[type[errors.KnarrError], int] = {
    errors.KnarrError: ENGINE_ERROR,
    errors.UsageError: ENGINE_ERROR,
    errors.SpecError: ENGINE_ERROR,
    errors.InvalidReference: ENGINE_ERROR,
    errors.InvalidDigest: ENGINE_ERROR,
    errors.InvalidId: ENGINE_ERROR,
    errors.NotFound: ENGINE_ERROR,
    errors.Exists: ENGINE_ERROR,
    errors.InUse: ENGINE_ERROR,
    errors.WrongStatus: ENGINE_ERROR,
    errors.DigestMismatch: ENGINE_ERROR,
    errors.SizeMismatch: ENGINE_ERROR,
    errors.SignatureError: ENGINE_ERROR,
    errors.FormatError: ENGINE_ERROR,
    errors.Unsupported: ENGINE_ERROR,
    errors.SafetyViolation: ENGINE_ERROR,
    errors.KernelError: ENGINE_ERROR,
    errors.FileError: ENGINE_ERROR,
    errors.HookError: ENGINE_ERROR,
    errors.InitError: ENGINE_ERROR,
    errors.CommandNotFound: 127,
    errors.CommandNotExecutable: 126,
    errors.RegistryError: ENGINE_ERROR,
    errors.AuthError: ENGINE_ERROR,
    errors.Interrupted: 130,
    errors.TimedOut: ENGINE_ERROR,
}
_RUNTIME: dict[type[errors.KnarrError], int] = dict.fromkeys(_ENGINE, RUNTIME_ERROR)
_RUNTIME_EXEC: dict[type[errors.KnarrError], int] = dict.fromkeys(_ENGINE, RUNTIME_EXEC_ERROR)
for _table in (_RUNTIME, _RUNTIME_EXEC):
    _table[errors.Interrupted] = 130


def engine_code(error: errors.KnarrError) -> int:
    """The exit code of ``knarr``."""
    return _ENGINE[type(error)]


def runtime_code(error: errors.KnarrError, verb: str) -> int:
    """The exit code of ``knarr-runtime VERB``."""
    return (_RUNTIME_EXEC if verb == "exec" else _RUNTIME)[type(error)]
