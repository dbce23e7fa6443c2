"""Readers; bodies follow with the row codecs."""

from __future__ import annotations

from typing import Any

from ._query import Steps


def bucket_is_empty(*arguments: Any) -> Steps[Any]:
    raise NotImplementedError(arguments)


def list_objects(*arguments: Any) -> Steps[Any]:
    raise NotImplementedError(arguments)


def list_versions(*arguments: Any) -> Steps[Any]:
    raise NotImplementedError(arguments)
