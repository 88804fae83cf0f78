"""The runtime specification's documents as data: constants, and types for the checkers (hot)."""

from __future__ import annotations

OCI_VERSION = "1.3.0"
"""The newest runtime-spec this code implements; written into documents it makes."""

OCI_VERSION_MIN = "1.0.0"
"""The oldest ociVersion accepted in a config.json."""
