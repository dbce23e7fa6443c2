"""Fuzz the links over TLS: frames of any size both ways, over a pipe that cuts, delays, stalls and
sometimes changes bytes; pauses, and ends at any time.

    python -m tests.fuzz.tls_frames [--seconds 60] [--seed 1]

What arrives is what was sent, up to some frame. If nobody ended the link and no byte was changed,
all of it arrives, and nothing is unsent. (Behind a changed length of a record a link may wait for
ever: signs of life end it, in `Peers`.)
"""

from __future__ import annotations

import asyncio
import random
import sys

from o3storage.runtime.network import LinkClosed
from o3storage.simulation import run
from tests.cluster.tls_pipe import pipe
from tests.fuzz._campaign import campaign, damage

SIZES = [0, 1, 3, 4, 5, 100, 4096, 16_384, 65_532, 65_533, 70_000, 131_072, 300_000, 2 << 20]


async def link(rng: random.Random) -> str | None:
    faults = rng.choice([0, 0, 0.002, 0.05])
    changed = False

    def whim(data: bytes) -> bytes:
        nonlocal changed
        if rng.random() >= faults:
            return data
        made = damage(rng, data)
        changed = changed or made != data
        return made

    near, far, accepted = pipe(rng, whim)
    got: dict[bool, list[bytes]] = {True: [], False: []}
    sent: dict[bool, list[bytes]] = {True: [], False: []}
    ended: list[str] = []
    closing = rng.randrange(4) == 0

    async def side(near_side: bool) -> None:
        end = near if near_side else far
        try:
            await end.established
        except LinkClosed as error:
            ended.append(str(error))
            return
        if near_side:
            await asyncio.sleep(rng.choice([0, 0, 0.5]))
        elif not accepted:
            await asyncio.sleep(0.1)

        def on_frame(view: memoryview) -> None:
            got[near_side].append(bytes(view))
            if rng.randrange(20) == 0:
                end.pause()
                asyncio.get_running_loop().call_later(rng.random() / 10, end.resume)

        end.begin(on_frame, lambda error: ended.append(str(error)))
        for number in range(rng.randrange(1, 30)):
            size = rng.choice(SIZES[:7] if number == 0 else SIZES)
            frame = rng.randbytes(size)
            cut = rng.randrange(size + 1)
            end.send([frame[:cut], frame[cut:]])
            sent[near_side].append(frame)
            if rng.randrange(3) == 0:
                await asyncio.sleep(rng.random() / 100)
            if rng.randrange(5) == 0:
                try:
                    await end.drain(rng.choice([0, 10_000, 1 << 20]))
                except LinkClosed:
                    return
            if closing and rng.randrange(30) == 0:
                end.close()
                return

    await asyncio.gather(side(True), side(False))
    await asyncio.sleep(600.0)
    for here in (True, False):
        if got[here] != sent[not here][: len(got[here])]:
            return "what arrived is not what was sent"
        if not ended and not changed and len(got[here]) != len(sent[not here]):
            return f"{len(got[here])} of {len(sent[not here])} frames arrived"
    if not ended and not changed and (near.unsent_bytes or far.unsent_bytes):
        return "something is unsent"
    if ended and not (changed or closing):
        return f"the link ended by itself: {ended}"
    near.close()
    far.close()
    return None


def step(rng: random.Random) -> str | None:
    return run(link(rng), rng.randrange(2**32), limit_s=3600.0)


def main() -> int:
    return campaign(__doc__, step, "links")


if __name__ == "__main__":
    sys.exit(main())
