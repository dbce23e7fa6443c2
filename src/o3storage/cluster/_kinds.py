"""Kinds of calls and streams between nodes, all in one place so that none is used twice.

16 to 31 are replication's, 32 to 63 membership's.
"""

from __future__ import annotations

from typing import Final

PROPOSE: Final = 16
"""Call: proposals for the leader of a group (`_forwarding`)."""
FRAMES: Final = 17
"""Call: some frames of a stream (`_fetching`)."""
BODY: Final = 18
"""Stream: the frames of a body as it is uploaded (`_data`)."""
QUERY: Final = 19
"""Call: a query of a range that the asker has no replica of (`_elsewhere`)."""
SESSION: Final = 20
"""Call: which run of the node is this one (`_collector`)."""
SUBMIT: Final = 21
"""Call: a command for such a range."""
HOLD: Final = 22
"""Call: keep the frames of some streams readable for a reader elsewhere (`_lending`)."""
LET_GO: Final = 23
"""Call: that reader has ended."""

JOIN: Final = 32
"""Call, also of guests: make me a member (`_join`)."""
FACTS: Final = 33
"""Call: what a node says of itself, as JSON (`_membership`)."""
MEMBERS: Final = 34
"""Call: which nodes there are, as range 0 has it there (`_introductions`)."""
