"""Readers; bodies follow with the row codecs."""

from __future__ import annotations

from typing import Any

from ._query import Steps


def head_version(*arguments: Any) -> Steps[Any]:
    raise NotImplementedError(arguments)
