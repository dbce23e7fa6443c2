"""Header names of a preflight against all patterns at once, as against each."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from o3storage.s3._cors import Rule, _wildcard

PIECES = st.text("aAb-", max_size=3)
PATTERNS = st.one_of(PIECES, st.tuples(PIECES, PIECES).map("*".join))


@given(st.lists(PATTERNS, max_size=5), st.lists(st.text("aAb-", max_size=6), max_size=4))
def test_headers_are_matched_as_one_by_one(patterns: list[str], asked: list[str]) -> None:
    rule = Rule(["*"], ["GET"], patterns)
    plainly = all(
        any(_wildcard(pattern.lower(), name.lower()) for pattern in patterns) for name in asked
    )
    assert rule.matches("https://a", "GET", asked) == plainly
