"""Readers; bodies follow with the row codecs."""

from __future__ import annotations

from typing import Any

from ._query import Steps


def get_part(*arguments: Any) -> Steps[Any]:
    raise NotImplementedError(arguments)


def get_upload(*arguments: Any) -> Steps[Any]:
    raise NotImplementedError(arguments)


def list_parts(*arguments: Any) -> Steps[Any]:
    raise NotImplementedError(arguments)


def list_uploads(*arguments: Any) -> Steps[Any]:
    raise NotImplementedError(arguments)


def part_of_version(*arguments: Any) -> Steps[Any]:
    raise NotImplementedError(arguments)


def parts_from(*arguments: Any) -> Steps[Any]:
    raise NotImplementedError(arguments)


def parts_of_version(*arguments: Any) -> Steps[Any]:
    raise NotImplementedError(arguments)
