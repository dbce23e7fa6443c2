"""Small frames that are kept for followers, and released streams that are remembered: the newest,
within a bound."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from o3storage.cluster import _replication
from o3storage.cluster._replication import (
    RIDING_BYTES,
    RIDING_OVERHEAD_BYTES,
    Replication,
    RidingFrames,
)
from o3storage.storage import SealedFrame


def frame(number: int, size: int) -> SealedFrame:
    return SealedFrame(number.to_bytes(16, "big"), 0, True, size, b"x" * (size + 16))


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 32 << 10)), max_size=120))
def test_the_newest_are_kept_within_the_bound(puts: list[tuple[int, int]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_replication, "RIDING_BYTES", 200_000)
        riding = RidingFrames()
        model: list[SealedFrame] = []
        for number, size in puts:
            new = frame(number, size)
            riding.put(new)
            if all(kept.stream != new.stream for kept in model):
                model.append(new)
            while sum(len(kept.data) + RIDING_OVERHEAD_BYTES for kept in model) > 200_000:
                del model[0]
            found = [riding.get(n.to_bytes(16, "big")) for n in range(61)]
            assert [kept for kept in found if kept is not None] == sorted(
                model, key=lambda kept: kept.stream
            )


def test_bodies_of_one_byte_take_no_more_memory_than_others() -> None:
    """By their data alone a million of them were within the bound, and 300 MB."""
    riding = RidingFrames()
    for number in range(100_000):
        riding.put(frame(number, 1))
    assert len(riding) <= RIDING_BYTES // RIDING_OVERHEAD_BYTES
    assert riding.get((99_999).to_bytes(16, "big")) is not None
    assert riding.get(bytes(16)) is None


def test_the_streams_that_were_released_last_are_remembered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_replication, "MAX_RELEASED", 10)
    node: Any = Replication.__new__(Replication)
    node._released = OrderedDict()
    streams = [number.to_bytes(16, "big") for number in range(25)]
    for at in range(0, 25, 5):
        node.note_released(streams[at : at + 5])
    assert [node.was_released(stream) for stream in streams] == [False] * 15 + [True] * 10
