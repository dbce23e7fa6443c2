"""Readers; bodies follow with the row codecs."""

from __future__ import annotations

from typing import Any

from ._query import Steps


def chores(*arguments: Any) -> Steps[Any]:
    raise NotImplementedError(arguments)


def counts(*arguments: Any) -> Steps[Any]:
    raise NotImplementedError(arguments)


def get_access_key(*arguments: Any) -> Steps[Any]:
    raise NotImplementedError(arguments)


def get_bucket(*arguments: Any) -> Steps[Any]:
    raise NotImplementedError(arguments)


def get_cluster_setting(*arguments: Any) -> Steps[Any]:
    raise NotImplementedError(arguments)


def is_abandoned(*arguments: Any) -> Steps[Any]:
    raise NotImplementedError(arguments)


def list_access_keys(*arguments: Any) -> Steps[Any]:
    raise NotImplementedError(arguments)


def list_buckets(*arguments: Any) -> Steps[Any]:
    raise NotImplementedError(arguments)


def list_epoch_keys(*arguments: Any) -> Steps[Any]:
    raise NotImplementedError(arguments)


def list_nodes(*arguments: Any) -> Steps[Any]:
    raise NotImplementedError(arguments)


def pending_buckets(*arguments: Any) -> Steps[Any]:
    raise NotImplementedError(arguments)


def range_bucket_epoch(*arguments: Any) -> Steps[Any]:
    raise NotImplementedError(arguments)
