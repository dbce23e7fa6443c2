"""Why a store cannot start or go on, in one line that says what to do."""

from __future__ import annotations


class StartError(Exception):
    """Shown to the user as it stands; the process ends with 1."""


class AdminError(Exception):
    """A refusal of the admin API: an HTTP status and what to do."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
