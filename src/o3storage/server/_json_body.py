"""The JSON bodies of the admin API."""

from __future__ import annotations

import json
from typing import Any

from ._errors import AdminError


def read_fields(body: bytes, names: tuple[str, ...], example: str) -> dict[str, Any]:
    """The fields of a body that is one JSON object, with a text in each of `names`. Raises
    AdminError, which shows `example`."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):  # what is nested thousands deep is the second
        found = None
    if not isinstance(found, dict) or not all(_is_text(found.get(name)) for name in names):
        raise AdminError(400, f"the body must be JSON like {example}")
    return found


def _is_text(value: object) -> bool:
    """A str that UTF-8 can hold: JSON can name half a surrogate pair."""
    return isinstance(value, str) and not any("\ud800" <= char <= "\udfff" for char in value)
