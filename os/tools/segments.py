"""What a sender of TCP did on the relay's wire: `segments.py TRACE SENDER [FROM_S-TO_S]`.

TRACE is what `relay.Relay.save_trace` wrote, SENDER the side (0 or 1) whose data is looked at.
Prints how many segments went, were lost and went again, how many of these were needless, the round
trips, and the pauses of the sender: what a timer cost shows there. With a span, its segments too.
"""

from __future__ import annotations

import json
import statistics
import struct
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

ETHERNET, IPV4 = 14, 20
ACK = 16
# A segment with less data is no part of the transfer.
LEAST_BYTES = 100
# A longer pause of the sender is told.
PAUSE_S = 0.03
HALF = 1 << 31


@dataclass(frozen=True)
class Seen:
    """One segment at the relay: seconds, the sender's side, "sent", "late" or "lost"."""

    at_s: float
    side: int
    fate: str
    seq: int
    ack: int
    flags: int
    window: int
    size: int
    sacks: tuple[tuple[int, int], ...]

    @property
    def end(self) -> int:
        return (self.seq + self.size) % (1 << 32)


def past(a: int, b: int) -> int:
    """How far `a` lies past `b` in the circle of numbers; negative where it lies before."""
    return (a - b + HALF) % (1 << 32) - HALF


def parse(at_s: float, side: int, fate: str, head: bytes) -> Seen | None:
    """None for what is not TCP over IPv4."""
    if len(head) < ETHERNET + IPV4 + 20 or head[12:14] != b"\x08\0" or head[23] != 6:
        return None
    (total,) = struct.unpack_from(">H", head, 16)
    seq, ack, offset, flags, window = struct.unpack_from(">IIBBH", head, 38)
    length = (offset >> 4) * 4
    options = head[ETHERNET + IPV4 + 20 : ETHERNET + IPV4 + length]
    sacks: list[tuple[int, int]] = []
    while options and options[0]:
        size = 1 if options[0] == 1 or len(options) == 1 else max(options[1], 1)
        if options[0] == 5:
            sacks += struct.iter_unpack(">II", options[2:size])
        options = options[size:]
    return Seen(at_s, side, fate, seq, ack, flags, window, total - IPV4 - length, tuple(sacks))


def read(path: Path) -> list[Seen]:
    entries = (json.loads(line) for line in path.read_text().splitlines())
    seen = (parse(at_s, side, fate, bytes.fromhex(head)) for at_s, side, fate, head in entries)
    return [segment for segment in seen if segment]


@dataclass
class Report:
    seconds: float
    fates: Counter[str]
    resent: int
    # Sent again although it had been carried before.
    needless: int
    round_trips_ms: list[float]
    # When, how long, and the number that ended it.
    pauses: list[tuple[float, float, int]]


def report(segments: list[Seen], sender: int) -> Report:
    """What the data of a side met; ValueError where it sent none."""
    data = [s for s in segments if s.side == sender and s.size > LEAST_BYTES]
    if not data:
        raise ValueError(f"side {sender} sent no data")
    begin_s, end_s = data[0].at_s, data[-1].at_s
    found = Report(end_s - begin_s, Counter(s.fate for s in data), 0, 0, [], [])
    following, last_s = data[0].seq, begin_s
    carried: set[int] = set()
    sent_s: dict[int, float] = {}
    for segment in segments:
        if not begin_s <= segment.at_s <= end_s:
            continue
        if segment.side == sender and segment.size > LEAST_BYTES:
            if past(segment.seq, following) < 0:
                found.resent += 1
                found.needless += segment.seq in carried
                sent_s.pop(segment.end, None)
            else:
                following = segment.end
                sent_s[segment.end] = segment.at_s
            if segment.fate != "lost":
                carried.add(segment.seq)
            if segment.at_s - last_s > PAUSE_S:
                found.pauses.append((last_s - begin_s, segment.at_s - last_s, segment.seq))
            last_s = segment.at_s
        elif segment.side != sender and segment.flags & ACK and segment.ack in sent_s:
            found.round_trips_ms.append((segment.at_s - sent_s.pop(segment.ack)) * 1000)
    return found


def main() -> None:
    segments, sender = read(Path(sys.argv[1])), int(sys.argv[2])
    seen = report(segments, sender)
    print(f"{seen.seconds:.2f} s, segments {dict(seen.fates)}")
    print(f"sent again {seen.resent}, {seen.needless} of them needlessly")
    trips = [round(q, 2) for q in statistics.quantiles(seen.round_trips_ms or [0, 0], n=10)]
    print(f"round trips in ms, tenths: {trips}")
    print(f"pauses: {len(seen.pauses)}, together {sum(p[1] for p in seen.pauses):.2f} s")
    for at_s, length_s, seq in seen.pauses:
        print(f"  at {at_s:.4f} s for {length_s:.4f} s, ended by {seq}")
    if len(sys.argv) > 3:
        first, last = (float(text) for text in sys.argv[3].split("-"))
        begin_s = next(s.at_s for s in segments if s.side == sender and s.size > LEAST_BYTES)
        for s in segments:
            if first <= s.at_s - begin_s < last:
                sacks = " ".join(f"{a}-{b}" for a, b in s.sacks)
                what = f"{s.seq}+{s.size} ack {s.ack} window {s.window} {sacks}"
                print(f"{s.at_s - begin_s:.5f} {s.side} {s.fate} {what}")


if __name__ == "__main__":
    main()
