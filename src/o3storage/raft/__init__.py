"""Consensus. `raft.core` is the pure state machine of one group on one node; `cluster` drives it
over the store's log and, between nodes, over the peer protocol."""
