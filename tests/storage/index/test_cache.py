"""The cache of blocks: what it holds, what leaves first, and its bound."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from o3storage.storage.index._cache import ENTRY_OVERHEAD_BYTES, BlockCache

BOUND = 2000
BLOCK = bytes(100)
SIZE = len(BLOCK) + ENTRY_OVERHEAD_BYTES
ROOM = BOUND // SIZE


class Model:
    """Two queues of (key, block)."""

    def __init__(self) -> None:
        self.old: list[tuple[int, bytes]] = []
        self.young: list[tuple[int, bytes]] = []

    def get(self, key: int) -> bytes | None:
        for pair in self.young:
            if pair[0] == key:
                return pair[1]
        for pair in self.old:
            if pair[0] == key:
                self.old.remove(pair)
                self.young.append(pair)
                return pair[1]
        return None

    def put(self, key: int, block: bytes) -> None:
        new = (key, block)
        if bytes_of([new]) > BOUND // 2 or key in dict(self.old + self.young):
            return
        if bytes_of([*self.young, new]) > BOUND // 2:
            self.old, self.young = self.old + self.young, []
        self.young.append(new)
        while bytes_of(self.old + self.young) > BOUND:
            self.old.pop(0)


def bytes_of(pairs: list[tuple[int, bytes]]) -> int:
    return sum(len(block) + ENTRY_OVERHEAD_BYTES for _, block in pairs)


steps = st.lists(st.tuples(st.booleans(), st.integers(0, 20), st.integers(0, BOUND)), max_size=200)


def follow(plan: list[tuple[bool, int, int]]) -> None:
    """Each step: put (else get), key, size of the block in bytes."""
    cache, model = BlockCache(BOUND), Model()
    for is_put, key, size in plan:
        if is_put:
            block = bytes([key]) * size
            cache.put(key, block)
            model.put(key, block)
        else:
            assert cache.get(key) == model.get(key)
        assert cache.size_bytes == bytes_of(model.old + model.young) <= BOUND
        assert list(cache.young.items()) == model.young


@given(steps)
def test_two_generations_against_a_model(plan):
    follow(plan)


@pytest.mark.parametrize("seed", range(20))
def test_two_generations_over_a_long_time(seed):
    chance = random.Random(seed)
    sizes = [10, 100, 300, BOUND // 2, BOUND - ENTRY_OVERHEAD_BYTES]
    follow(
        [
            (chance.random() < 0.5, chance.randrange(20), chance.choices(sizes, [6, 6, 6, 1, 1])[0])
            for _ in range(1000)
        ]
    )


def test_what_is_asked_for_stays_while_others_pass_through():
    cache = BlockCache(BOUND)
    for key in range(10 * ROOM):
        cache.put(key, BLOCK)
        assert key == 0 or cache.get(0) is not None
    assert cache.get(ROOM) is None


def test_nothing_leaves_that_need_not():
    """What comes in takes the place of one block, not of many."""
    cache = BlockCache(BOUND)
    for key in range(10 * ROOM):
        cache.put(key, BLOCK)
        assert cache.size_bytes == min(key + 1, ROOM) * SIZE


def test_a_block_above_the_bound_is_not_kept():
    cache = BlockCache(BOUND)
    cache.put(1, BLOCK)
    cache.put(2, bytes(BOUND))
    assert cache.get(2) is None
    assert cache.get(1) == BLOCK
