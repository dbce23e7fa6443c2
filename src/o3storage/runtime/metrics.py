"""Metrics and their Prometheus text exposition (format 0.0.4,
https://prometheus.io/docs/instrumenting/exposition_formats/).

The hot path is one attribute update: keep the child of a label set (`requests.labels("GET")`) and
call `inc` or `observe` on it.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Sequence
from math import inf
from typing import Any, Generic, TypeVar

C = TypeVar("C")

LABEL_SETS_MAX = 1_000
"""Label values come from the program, not from requests; more sets than this is a defect that
would otherwise show as growing memory."""

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

LATENCY_BOUNDS_S = (
    0.0001,
    0.00025,
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
)
"""Upper bounds of latency buckets, in seconds: from a page-cache hit to a stalled disk."""


class CounterChild:
    """One series of a counter."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: float = 0

    def inc(self, amount: float = 1) -> None:
        """Add `amount`, which is not negative."""
        self.value += amount


class GaugeChild:
    """One series of a gauge."""

    __slots__ = ("read", "value")

    def __init__(self) -> None:
        self.value: float = 0
        self.read: Callable[[], float] | None = None

    def set(self, value: float) -> None:
        """Replace the value."""
        self.value = value

    def inc(self, amount: float = 1) -> None:
        """Add `amount` (negative to subtract)."""
        self.value += amount

    def set_function(self, read: Callable[[], float]) -> None:
        """Take the value from `read` at each exposition."""
        self.read = read

    def current(self) -> float:
        """The value, or that of the function."""
        return self.value if self.read is None else self.read()


class HistogramChild:
    """One series of a histogram."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum: float = 0.0

    def observe(self, value: float) -> None:
        """Count one observation."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    @property
    def count(self) -> int:
        """Observations so far."""
        return sum(self.counts)


class _Family(Generic[C]):
    """All series of one name."""

    kind = ""

    def __init__(
        self, registry: Registry, name: str, help_text: str, labels: Sequence[str] = ()
    ) -> None:
        self.name = name
        self.help_text = help_text
        self.label_names = tuple(labels)
        self._children: dict[tuple[str, ...], C] = {}
        registry.add(self)

    def _make(self) -> C:
        raise NotImplementedError

    def labels(self, *values: str) -> C:
        """The series of these label values, in the order of the label names. ValueError for a
        wrong number of them or too many sets."""
        child = self._children.get(values)
        if child is None:
            if len(values) != len(self.label_names):
                raise ValueError(f"{self.name} has the labels {self.label_names}")
            if len(self._children) >= LABEL_SETS_MAX:
                raise ValueError(f"{self.name} has more than {LABEL_SETS_MAX} label sets")
            child = self._children[values] = self._make()
        return child

    def lines(self, child: C, labels: str) -> list[str]:
        """The exposition lines of one series; `labels` is `a="b",...` or empty."""
        raise NotImplementedError

    def expose(self) -> list[str]:
        """Header and lines of all series."""
        lines = [f"# HELP {self.name} {_escape_help(self.help_text)}"]
        lines.append(f"# TYPE {self.name} {self.kind}")
        for values, child in self._children.items():
            pairs = zip(self.label_names, values, strict=True)
            labels = ",".join(f'{name}="{_escape_label(value)}"' for name, value in pairs)
            lines += self.lines(child, labels)
        return lines


class Counter(_Family[CounterChild]):
    """A sum that only grows. By convention its name ends in `_total`."""

    kind = "counter"

    def _make(self) -> CounterChild:
        return CounterChild()

    def inc(self, amount: float = 1) -> None:
        """Add to the series without labels."""
        self.labels().value += amount

    def lines(self, child: CounterChild, labels: str) -> list[str]:
        """See `_Family.lines`."""
        return [f"{self.name}{_braced(labels)} {_number(child.value)}"]


class Gauge(_Family[GaugeChild]):
    """A value that goes up and down."""

    kind = "gauge"

    def _make(self) -> GaugeChild:
        return GaugeChild()

    def set(self, value: float) -> None:
        """Set the series without labels."""
        self.labels().value = value

    def inc(self, amount: float = 1) -> None:
        """Add to the series without labels."""
        self.labels().value += amount

    def set_function(self, read: Callable[[], float]) -> None:
        """Take the series without labels from `read` at each exposition."""
        self.labels().read = read

    def lines(self, child: GaugeChild, labels: str) -> list[str]:
        """See `_Family.lines`."""
        return [f"{self.name}{_braced(labels)} {_number(child.current())}"]


class Histogram(_Family[HistogramChild]):
    """Counts of observations by upper bounds, in the base unit (seconds, bytes)."""

    kind = "histogram"

    def __init__(
        self,
        registry: Registry,
        name: str,
        help_text: str,
        labels: Sequence[str] = (),
        *,
        bounds: Sequence[float] = LATENCY_BOUNDS_S,
    ) -> None:
        if list(bounds) != sorted(set(bounds)):
            raise ValueError("bounds must ascend")
        self._bounds = tuple(bounds)
        super().__init__(registry, name, help_text, labels)

    def _make(self) -> HistogramChild:
        return HistogramChild(self._bounds)

    def observe(self, value: float) -> None:
        """Count one observation in the series without labels."""
        self.labels().observe(value)

    def lines(self, child: HistogramChild, labels: str) -> list[str]:
        """See `_Family.lines`."""
        lead = f"{labels}," if labels else ""
        lines = []
        total = 0
        for bound, count in zip((*self._bounds, inf), child.counts, strict=True):
            total += count
            lines.append(f'{self.name}_bucket{{{lead}le="{_number(bound)}"}} {total}')
        lines.append(f"{self.name}_sum{_braced(labels)} {_number(child.sum)}")
        lines.append(f"{self.name}_count{_braced(labels)} {total}")
        return lines


class Registry:
    """All metrics of one node."""

    def __init__(self) -> None:
        self._families: dict[str, _Family[Any]] = {}

    def add(self, family: _Family[Any]) -> None:
        """Called by the metrics themselves. ValueError for a bad name or a name in use."""
        if not _NAME.fullmatch(family.name):
            raise ValueError(f"not a metric name: {family.name!r}")
        if any(not _LABEL.fullmatch(name) for name in family.label_names):
            raise ValueError(f"not label names: {family.label_names!r}")
        if family.name in self._families:
            raise ValueError(f"the metric {family.name} exists already")
        self._families[family.name] = family

    def counter(self, name: str, help_text: str, labels: Sequence[str] = ()) -> Counter:
        """A new counter."""
        return Counter(self, name, help_text, labels)

    def gauge(self, name: str, help_text: str, labels: Sequence[str] = ()) -> Gauge:
        """A new gauge."""
        return Gauge(self, name, help_text, labels)

    def histogram(
        self,
        name: str,
        help_text: str,
        labels: Sequence[str] = (),
        *,
        bounds: Sequence[float] = LATENCY_BOUNDS_S,
    ) -> Histogram:
        """A new histogram."""
        return Histogram(self, name, help_text, labels, bounds=bounds)

    def expose(self) -> str:
        """All metrics as text for a scraper; see `CONTENT_TYPE`."""
        lines: list[str] = []
        for family in self._families.values():
            lines += family.expose()
        return "\n".join(lines) + "\n" if lines else ""


_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL = re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*")


def _escape_help(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def _escape_label(text: str) -> str:
    return _escape_help(text).replace('"', '\\"')


def _braced(labels: str) -> str:
    return f"{{{labels}}}" if labels else ""


def _number(value: float) -> str:
    if value == inf:
        return "+Inf"
    if value == -inf:
        return "-Inf"
    if isinstance(value, int) or value.is_integer():
        return str(int(value))
    return repr(value)
