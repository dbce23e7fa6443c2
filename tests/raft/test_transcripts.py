"""Transcripts of protocol exchanges, replayed: each `> command` must print exactly the lines below it.

After a change that is meant: `O3_REWRITE_TRANSCRIPTS=1 pytest tests/raft/test_transcripts.py`, then
read the diff. Commands: `group N [learnable M]`, `tick NODE [TIMES]`, `deliver [FROM TO]`,
`drop [FROM TO]`, `write NODE`, `settle`, `propose NODE TEXT...`, `read NODE`, `change NODE
voters=1,2 learners=3`, `transfer NODE TARGET`, `compact NODE`, `crash NODE`, `start NODE`,
`rot NODE INDEX...`, `state`.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from o3storage.raft.core import (
    Accepted,
    Append,
    AppendResponse,
    Apply,
    ChangeConfiguration,
    Configuration,
    Entry,
    Heartbeat,
    HeartbeatResponse,
    Message,
    Options,
    Persist,
    ReadReady,
    ReadRefused,
    Refused,
    RoleChanged,
    Send,
    SnapshotPiece,
    SnapshotResponse,
    TransferLeadership,
    VoteRequest,
    VoteResponse,
)
from tests.raft.model import Cluster, Node

HERE = Path(__file__).parent / "transcripts"
KINDS = {0: "", 1: "no-op", 2: "members"}


def entry_text(entry: Entry) -> str:
    if entry.kind == 2:
        body = members_text(Configuration.decode(entry.data))
    else:
        body = entry.data.decode() or KINDS[entry.kind]
    return f"{entry.index}/{entry.term}:{body}"


def members_text(c: Configuration) -> str:
    text = "{" + ",".join(map(str, c.voters)) + "}"
    if c.outgoing:
        text += "&{" + ",".join(map(str, c.outgoing)) + "}"
    if c.learners:
        text += "+{" + ",".join(map(str, c.learners)) + "}"
    if c.next_learners:
        text += ">{" + ",".join(map(str, c.next_learners)) + "}"
    return text


def message_text(m: Message) -> str:
    head = f"{m.sender}->{m.to} t{m.term} "
    if isinstance(m, VoteRequest):
        kind = "pre-vote?" if m.pre else "vote?"
        return head + f"{kind} last={m.last_index}/{m.last_term}"
    if isinstance(m, VoteResponse):
        return head + ("pre-vote " if m.pre else "vote ") + ("yes" if m.granted else "no")
    if isinstance(m, Append):
        entries = " ".join(entry_text(e) for e in m.entries)
        return head + f"append after={m.prev_index}/{m.prev_term} [{entries}] commit={m.commit}"
    if isinstance(m, AppendResponse):
        if m.rejected:
            return head + f"no at={m.rejected_index} hint={m.hint_index}/{m.hint_term}"
        hole = f" hole={m.hole}" if m.hole else ""
        return head + f"match={m.match} data={m.data}{hole}"
    if isinstance(m, Heartbeat):
        return head + f"heartbeat commit={m.commit} round={m.round}" + " quiesce" * m.quiesce
    if isinstance(m, HeartbeatResponse):
        return head + f"alive round={m.round}"
    if isinstance(m, SnapshotPiece):
        last = " last" if m.last else ""
        return head + f"piece {m.number} of {m.index}/{m.index_term}{last}"
    if isinstance(m, SnapshotResponse):
        return head + f"stored {m.next_piece}"
    return head + type(m).__name__


class Player:
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.cluster = Cluster(1)

    def hook(self) -> None:
        carry = self.cluster.carry_out
        cluster = self.cluster

        def say(node: Node, output: object) -> None:
            text = self.output_text(output)
            if text:
                self.lines.append(f"  {node.id}: {text}")
            carry(node, output)

        cluster.carry_out = say  # type: ignore[method-assign]

    def output_text(self, output: object) -> str:
        if isinstance(output, Persist):
            parts = [f"persist #{output.ticket}"]
            if output.hard_state is not None:
                h = output.hard_state
                parts.append(f"term={h.term} vote={h.vote} commit={h.commit}")
            parts.extend(entry_text(e) for e in output.entries)
            parts.extend("fill " + entry_text(e) for e in output.fills)
            return " ".join(parts)
        if isinstance(output, Send):
            after = f" (after #{output.after_ticket})" if output.after_ticket else ""
            return "send " + message_text(output.message) + after
        if isinstance(output, Apply):
            return f"apply {output.low}..{output.high}"
        if isinstance(output, RoleChanged):
            return f"{output.role.value} in term {output.term}, leader {output.leader}"
        if isinstance(output, Accepted):
            return f"accepted {output.low}..{output.high}"
        if isinstance(output, Refused):
            return f"refused: {output.reason.value}"
        if isinstance(output, ReadReady):
            return f"read ready at {output.index}"
        if isinstance(output, ReadRefused):
            return "read refused"
        return type(output).__name__

    def find(self, words: list[str]) -> int:
        if not words:
            return 0
        sender, to = map(int, words)
        return next(
            i for i, m in enumerate(self.cluster.network) if (m.sender, m.to) == (sender, to)
        )

    def run(self, command: str) -> None:
        verb, *words = command.split()
        c = self.cluster
        if verb == "group":
            options = Options(
                election_ticks=5,
                heartbeat_ticks=1,
                quiesce_ticks=int(words[3]) if len(words) > 3 else 0,
            )
            extra = int(words[2]) if len(words) > 2 else 0
            self.cluster = Cluster(int(words[0]), options=options, extra=extra)
            self.hook()
            self.cluster.start()
        elif verb == "tick":
            c.tick(int(words[0]), int(words[1]) if len(words) > 1 else 1)
        elif verb == "deliver":
            at = self.find(words)
            self.lines.append("  " + message_text(c.network[at]))
            c.deliver(at)
        elif verb == "drop":
            at = self.find(words)
            self.lines.append("  lost " + message_text(c.network.pop(at)))
        elif verb == "write":
            c.flush(c.nodes[int(words[0])])
        elif verb == "settle":
            c.settle()
        elif verb == "propose":
            c.propose(int(words[0]), *[w.encode() for w in words[1:]])
        elif verb == "read":
            c.read(int(words[0]))
        elif verb == "change":
            named = dict(w.split("=") for w in words[1:])
            ids = {k: tuple(int(i) for i in v.split(",") if i) for k, v in named.items()}
            c.tokens += 1
            change = ChangeConfiguration(c.tokens, ids["voters"], ids.get("learners", ()))
            c.step(c.nodes[int(words[0])], change)
        elif verb == "transfer":
            c.step(c.nodes[int(words[0])], TransferLeadership(int(words[1])))
        elif verb == "compact":
            c.compact(int(words[0]))
        elif verb == "crash":
            c.nodes[int(words[0])].crash()
        elif verb == "start":
            c.nodes[int(words[0])].start()
        elif verb == "rot":
            for index in words[1:]:
                del c.nodes[int(words[0])].durable.entries[int(index)]
        elif verb == "state":
            for node in c.nodes.values():
                core = node.core
                if core is None:
                    self.lines.append(f"  {node.id}: down")
                    continue
                log = core.log
                holes = f" holes={log.holes}" if log.holes else ""
                self.lines.append(
                    f"  {node.id}: {core.role.value} term={core.term} log={log.floor + 1}"
                    f"..{log.last} commit={core.commit} applied={node.applied}"
                    f" members={members_text(core.configuration)}{holes}"
                )
        else:
            raise ValueError(command)


def replay(text: str) -> str:
    player = Player()
    out: list[str] = []
    for line in text.splitlines():
        if line.startswith("> "):
            player.lines = []
            player.run(line[2:])
            out.append(line)
            out.extend(player.lines)
        elif line.startswith("#") or not line.strip():
            out.append(line)
    return "\n".join(out) + "\n"


@pytest.mark.parametrize("path", sorted(HERE.glob("*.txt")), ids=lambda p: p.stem)
def test_transcript(path: Path) -> None:
    text = path.read_text()
    found = replay(text)
    if os.environ.get("O3_REWRITE_TRANSCRIPTS"):
        path.write_text(found)
    assert found == text


def test_there_are_transcripts() -> None:
    assert len(list(HERE.glob("*.txt"))) >= 8
