"""Runs the catalog's generators over a dict with sorted keys: the plainest possible index.

Used by the catalog's own tests and, through tests/support/memory_node.py, by tests of rooms above.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Generator
from typing import Any

from o3storage.catalog import CatalogError, Query, _values
from o3storage.runtime.state_machine import First, Get, Outcome, Read, Scan


class Rows:
    """Rows by key, in byte order. Counts reads so that tests can bound a step."""

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}
        self.keys: list[bytes] = []
        self.reads = 0
        self.rows_read = 0

    def get(self, key: bytes) -> bytes | None:
        return self.values.get(key)

    def first(self, prefix: bytes) -> tuple[bytes, bytes] | None:
        at = bisect_left(self.keys, prefix)
        if at < len(self.keys) and self.keys[at].startswith(prefix):
            return self.keys[at], self.values[self.keys[at]]
        return None

    def scan(self, low: bytes, high: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        assert 0 < limit <= 1001, f"a step reads at most 1,001 rows, not {limit}"
        start = bisect_left(self.keys, low)
        end = min(bisect_left(self.keys, high), start + limit)
        return [(key, self.values[key]) for key in self.keys[start:end]]

    def write(self, rows: list[tuple[bytes, bytes | None]]) -> None:
        for key, value in rows:
            if value is None:
                if self.values.pop(key, None) is not None:
                    del self.keys[bisect_left(self.keys, key)]
            else:
                if key not in self.values:
                    insort(self.keys, key)
                self.values[key] = value

    def run(self, steps: Generator[Read, Any, Any]) -> Any:
        """Drive a generator to its end and return its answer."""
        try:
            read = next(steps)
            while True:
                self.reads += 1
                kind = type(read)
                if kind is Get:
                    found: Any = self.get(read.key)
                elif kind is First:
                    found = self.first(read.prefix)
                else:
                    assert isinstance(read, Scan)
                    found = self.scan(read.low, read.high, read.limit)
                    self.rows_read += len(found)
                read = steps.send(found)
        except StopIteration as end:
            return end.value

    def query(self, query: Callable[[], Generator[Read, Any, Any]]) -> Any:
        """Run a query; one of a key range as another node would, from bytes to bytes."""
        if not isinstance(query, Query) or not query.route:
            return self.run(query())
        there = _values.decode_query(_values.encode_query(query))
        assert (there.route, there.group, there.parts) == (query.route, query.group, query.parts)
        assert type(there) is type(query)
        try:
            answer = self.run(there())
        except CatalogError as error:
            raise _by_wire(None, error)[1] from error
        return _by_wire(answer, None)[0]

    def apply(self, steps: Generator[Read, Any, Outcome]) -> Outcome:
        """Drive an apply and write its rows, all or nothing."""
        outcome = self.run(steps)
        assert isinstance(outcome, Outcome)
        assert outcome.error is None or isinstance(outcome.error, CatalogError)
        if outcome.error is not None:
            assert not outcome.rows and not outcome.released, "a refused command writes nothing"
        keys = [key for key, _ in outcome.rows]
        assert len(keys) == len(set(keys)), "an outcome names a row twice"
        assert len(keys) <= 1100, f"a step writes {len(keys)} rows"
        self.write(outcome.rows)
        outcome.result, outcome.error = _by_wire(outcome.result, outcome.error)
        return outcome


def _by_wire(result: Any, error: CatalogError | None) -> tuple[Any, Any]:
    """An answer as a node without a replica gets it."""
    data = _values.encode_answer(result, error)
    got, refusal = _values.decode_answer(data)
    assert (repr(got), repr(refusal)) == (repr(result), repr(error))
    assert _values.encode_answer(got, refusal) == data
    return got, refusal
