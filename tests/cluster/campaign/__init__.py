"""Real faults on real nodes: `python -m tests.cluster.campaign --nodes 3 --minutes 3 --seed S`."""
