"""Why a store cannot start or go on, in one line that says what to do."""

from __future__ import annotations


class StartError(Exception):
    """Shown to the user as it stands; the process ends with 1."""
