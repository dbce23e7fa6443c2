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

    `route` is the row key that decides which range answers (b"": range 0), unless `group` names
    it."""

    __slots__ = ("_arguments", "_function", "group", "route")

    def __init__(
        self,
        route: bytes,
        function: Callable[..., Steps[T_co]],
        *arguments: Any,
        group: int | None = None,
    ) -> None:
        self.route = route
        self.group = group
        self._function = function
        self._arguments = arguments

    def __call__(self, border: bytes | None = None) -> Steps[T_co]:
        """`border`: where the answering range ends (a row key without its table byte; None: it
        does not). A query of one key, or of a range as a whole, has no use for it."""
        del border
        return self._function(*self._arguments)

    @property
    def parts(self) -> tuple[Callable[..., Steps[T_co]], tuple[Any, ...]]:
        """The function that it runs, and on what."""
        return self._function, self._arguments

    def __repr__(self) -> str:
        return f"Query({self._function.__name__})"


class PageQuery(Query[T_co]):
    """A page of a listing: it ends early where the range ends, so that it has one instant."""

    __slots__ = ()

    def __call__(self, border: bytes | None = None) -> Steps[T_co]:
        return self._function(*self._arguments, border or b"")
