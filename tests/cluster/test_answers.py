"""Which answers of a follower need not be sent, as a later one says all that they do."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from o3storage.cluster._replica import answers_also
from o3storage.raft.core import AppendResponse, HeartbeatResponse

FIRST = AppendResponse(1, 2, 7, match=10, data=9, round=3)


def test_a_later_answer_stands_for_an_earlier_one() -> None:
    assert answers_also(replace(FIRST, match=12, data=11, round=4), FIRST)
    assert answers_also(replace(FIRST, debt=1, hole=5, uncertain=True), FIRST)


def test_what_only_the_earlier_one_says_is_sent() -> None:
    for other in (
        replace(FIRST, to=3),
        replace(FIRST, term=8),
        replace(FIRST, match=9, data=9),
        replace(FIRST, data=8),
        replace(FIRST, round=0),
        replace(FIRST, rejected=True, rejected_index=11),
        HeartbeatResponse(1, 2, 7, round=4),
    ):
        assert not answers_also(other, FIRST)
    refusal = replace(FIRST, rejected=True, rejected_index=11)
    assert not answers_also(FIRST, refusal)
    assert not answers_also(FIRST, HeartbeatResponse(1, 2, 7))


answers = st.builds(
    AppendResponse,
    st.just(1),
    st.integers(2, 3),
    st.integers(7, 8),
    match=st.integers(0, 3),
    data=st.integers(0, 3),
    rejected=st.booleans(),
    round=st.integers(0, 2),
)


@given(st.lists(answers, max_size=8))
def test_the_leader_knows_as_much_from_those_that_are_sent(made: list[AppendResponse]) -> None:
    sent: list[AppendResponse] = []
    for answer in made:
        if sent and answers_also(answer, sent[-1]):
            sent[-1] = answer
        else:
            sent.append(answer)

    def known(found: list[AppendResponse]) -> object:
        """By member and term: the marks that a leader keeps, which only grow; every refusal."""
        best: dict[tuple[int, int], tuple[int, int, int]] = {}
        for a in found:
            if not a.rejected:
                old = best.get((a.to, a.term), (0, 0, 0))
                mine = (a.match, a.data, a.round)
                best[a.to, a.term] = tuple(map(max, old, mine))  # type: ignore[assignment]
        return best, [a for a in found if a.rejected]

    assert known(sent) == known(made)
