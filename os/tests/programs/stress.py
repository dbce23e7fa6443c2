"""Threads, queues and locks for a stated time; a busy loop that must be preempted."""

import queue
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor


def main() -> int:
    seconds = float(sys.argv[1])
    end = time.monotonic() + seconds
    jobs: queue.Queue = queue.Queue(64)
    results: queue.Queue = queue.Queue()
    ticks = 0
    longest = 0.0

    def work() -> None:
        while (job := jobs.get()) is not None:
            results.put(job * job)

    def tick() -> None:
        # A busy loop elsewhere must not keep this from running.
        nonlocal ticks, longest
        last = time.monotonic()
        while last < end:
            time.sleep(0.01)
            now = time.monotonic()
            longest = max(longest, now - last)
            ticks += 1
            last = now

    def busy() -> None:
        count = 0
        while time.monotonic() < end:
            for _ in range(10000):
                count += 1

    threads = [threading.Thread(target=f) for f in (work, work, work, work, tick, busy)]
    for thread in threads:
        thread.start()
    sent = total = pooled = 0
    with ThreadPoolExecutor(8) as pool:
        while time.monotonic() < end:
            for i in range(20):
                jobs.put(i)
            sent += 20
            total += sum(results.get() for _ in range(20))
            pooled += sum(pool.map(len, ["x" * n for n in range(20)]))
    for _ in range(4):
        jobs.put(None)
    for thread in threads:
        thread.join()
    rounds = sent // 20
    right = total == rounds * 2470 and pooled == rounds * 190
    print(f"stress: {rounds} rounds, {ticks} ticks, longest {longest * 1000:.0f} ms, right {right}")
    # Six busy threads on one processor and the interpreter's lock: a tick in two seconds is life.
    return 0 if right and rounds and ticks > seconds and longest < 2 else 1


if __name__ == "__main__":
    sys.exit(main())
