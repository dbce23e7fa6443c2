"""The Query object: what a query function returns and a node runs."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, Generic, TypeVar

from o3storage.runtime.state_machine import Read

T_co = TypeVar("T_co", covariant=True)

Steps = Generator[Read, Any, T_co]
"""A read-only generator: yields Get, First or Scan, is sent what was found, returns the answer."""


class Query(Generic[T_co]):
    """A read at one instant: calling it starts a fresh generator, any number of times, so a node
    may run it from memory first and again with disk reads.

    `route` is the row key that decides which range answers (b"": range 0)."""

    __slots__ = ("_arguments", "_function", "route")

    def __init__(self, route: bytes, function: Callable[..., Steps[T_co]], *arguments: Any) -> None:
        self.route = route
        self._function = function
        self._arguments = arguments

    def __call__(self) -> Steps[T_co]:
        return self._function(*self._arguments)

    def __repr__(self) -> str:
        return f"Query({self._function.__name__})"
