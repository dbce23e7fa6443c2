"""Buckets that are deleted while clients write into them: one of the two wins, for good.

Each such bucket has a name of its own, its objects are never deleted, and it is never made again.
So at the end it is gone and nobody was told that a write took effect, or it is there with
everything that was acknowledged.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ._requests import Answer, Call, Truncated
from ._workload import Lost, Value

if TYPE_CHECKING:
    from ._world import World

EVERY_SEEDS = 7
"""In one seed of seven: the others have the same two buckets throughout."""
BUCKETS_OF_A_RUN = 5
WRITERS = 2
DELETES = 3
"""Tries of the one who deletes."""
SIZES = (20, 3_000, 50_000)
SLOW_SHARE = 0.6
"""Part of the buckets whose writers are slow, so that the bucket is empty when it is to go."""
SLOW_PIECES = 3
SLOW_PAUSE_S = 0.01
PATIENCE_S = 60.0
"""For an answer other than 503 when all faults are over."""
AGAIN_S = 0.3


def comes_and_goes(seed: int) -> bool:
    return seed % EVERY_SEEDS == EVERY_SEEDS - 1


@dataclass(slots=True)
class Bucket:
    """What its clients were told."""

    name: str
    made: bool = False
    slow: bool = False
    """The head of a write is taken while the bucket is there, its end comes when it may be gone."""
    written: dict[str, Value] = field(default_factory=dict)
    """Acknowledged writes."""
    tried: int = 0
    deleted: bool = False
    maybe_deleted: bool = False
    denied: bool = False
    """A write was told that there is no such bucket."""


class Fleeting:
    """`work` while faults strike, `judge` when they are over."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._rng: random.Random = world.rng("fleeting")
        self._buckets: list[Bucket] = []

    async def work(self) -> None:
        world, rng = self._world, self._rng
        if not comes_and_goes(world.seed):
            return
        for number, at in enumerate(sorted(rng.sample(world.bursts, BUCKETS_OF_A_RUN)), start=1):
            await asyncio.sleep(max(0.0, at - world.loop.time()))
            bucket = Bucket(f"fleeting-{number}", slow=rng.random() < SLOW_SHARE)
            self._buckets.append(bucket)
            if not await self._make(bucket):
                continue
            await asyncio.gather(
                self._delete(bucket), *(self._write(bucket, f"w{n}") for n in range(WRITERS))
            )

    async def _send(self, call: Call) -> Answer | None:
        """None: nobody knows what became of it."""
        await self._world.serving.wait()
        try:
            answer = await self._world.send("fleeting", call)
        except (Lost, Truncated):
            return None
        return None if answer.status == 503 else answer

    async def _make(self, bucket: Bucket) -> bool:
        """False: it may be there or not, and nobody uses it."""
        answer = await self._send(Call("PUT", f"/{bucket.name}"))
        if answer is None or answer.status == 507:
            return False
        if answer.status != 200:
            self._world.unexpected("fleeting", Call("PUT", f"/{bucket.name}"), answer)
            return False
        bucket.made = True
        return True

    async def _write(self, bucket: Bucket, writer: str) -> None:
        rng, world = self._rng, self._world
        for number in range(rng.choice((1, 1, 2))):
            await asyncio.sleep(
                rng.random() * rng.choice((0.001, 0.01, 0.01 if bucket.slow else 0.5))
            )
            value = world.values.make(rng, rng.choice(SIZES))
            key = f"{writer}-{number}"
            call = Call("PUT", f"/{bucket.name}/{key}", body=value.body)
            if bucket.slow:
                call.piece_bytes = max(1, len(value.body) // SLOW_PIECES)
                call.pause_s = rng.random() * SLOW_PAUSE_S
            bucket.tried += 1
            answer = await self._send(call)
            if answer is None or answer.status == 507:
                continue
            if answer.status == 200:
                bucket.written[key] = value
            elif answer.code == "NoSuchBucket":
                bucket.denied = True
            else:
                world.unexpected("fleeting", call, answer)

    async def _delete(self, bucket: Bucket) -> None:
        rng, world = self._rng, self._world
        call = Call("DELETE", f"/{bucket.name}")
        for _ in range(DELETES):
            longest_s = rng.choice((0.005, 0.02) if bucket.slow else (0.001, 0.01, 0.5))
            await asyncio.sleep(rng.random() * longest_s)
            answer = await self._send(call)
            if answer is None or answer.status == 507 or answer.code == "OperationAborted":
                # It takes steps: the disk may fill up in between, or an earlier try go on.
                bucket.maybe_deleted = True
            elif answer.status == 204:
                bucket.deleted = True
                return
            elif answer.code == "NoSuchBucket" and bucket.maybe_deleted:
                return
            elif answer.code != "BucketNotEmpty" or not bucket.tried:
                world.unexpected("fleeting", call, answer)

    # --- the end

    async def judge(self) -> None:
        for bucket in self._buckets:
            if bucket.made:
                await self._judge(bucket)

    async def _judge(self, bucket: Bucket) -> None:
        answer = await self._patiently(Call("GET", f"/{bucket.name}", {"list-type": "2"}))
        told = f"{bucket.name}, told of {list(bucket.written)}"
        if answer is None:
            self._violation("P5", f"{told}: no listing in {PATIENCE_S:.0f} s without a fault")
        elif answer.status == 404:
            if bucket.written:
                self._violation("P1", f"{told}: it is gone")
            if not bucket.deleted and not bucket.maybe_deleted:
                self._violation("P1", f"{told}: it is gone and nobody deleted it")
        else:
            if bucket.deleted:
                self._violation("P4", f"{told}: it is there, and was deleted")
            if bucket.denied:
                self._violation("P4", f"{told}: it is there, and a write was told that it is not")
            listed = await self._listed(bucket, answer)
            for key, value in bucket.written.items():
                found = await self._patiently(Call("GET", f"/{bucket.name}/{key}"))
                if found is not None and found.status == 500 and self._world.damaged:
                    continue  # there is no other copy: it may refuse, but not send wrong bytes
                if key not in listed or found is None or found.body != value.body:
                    self._violation("P1", f"{told}: {key} cannot be read back")

    async def _listed(self, bucket: Bucket, page: Answer | None) -> dict[str | None, None]:
        """All keys: a page ends where its range of keys ends."""
        found: dict[str | None, None] = {}
        while page is not None:
            found |= {item.findtext("Key"): None for item in page.xml.findall("Contents")}
            token = page.xml.findtext("NextContinuationToken")
            if token is None:
                break
            query = {"list-type": "2", "continuation-token": token}
            page = await self._patiently(Call("GET", f"/{bucket.name}", query))
        return found

    async def _patiently(self, call: Call) -> Answer | None:
        end_s = self._world.loop.time() + PATIENCE_S
        while True:
            answer = await self._send(call)
            if answer is not None or self._world.loop.time() >= end_s:
                return answer
            await asyncio.sleep(AGAIN_S)

    def _violation(self, promise: str, text: str) -> None:
        if not self._world.gave_up:
            self._world.violation(promise, text)
