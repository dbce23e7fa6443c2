"""Refusals of the cluster. Each message says what to do."""

from __future__ import annotations


class ClusterError(Exception):
    """Base of all errors of this room."""


class Unavailable(ClusterError):
    """The operation cannot be done now (S3: 503). `reason` is for the client and the operator.

    `uncertain`: it may still take effect, so it must not be made again by this program; else it
    definitely did not."""

    def __init__(self, reason: str, *, uncertain: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.uncertain = uncertain


class StorageFull(ClusterError):
    """The disk has reached its reserve (S3: 507): delete something or add space. Nothing was
    written."""


class LogFull(StorageFull):
    """There is no space for the log: nothing can be written, deletes neither."""


class BodyMissing(ClusterError):
    """The frames of a body are not here: the version that named them was deleted meanwhile."""


class BodyDamaged(ClusterError):
    """A frame of a body does not match its checksum or its seal, and there is no other copy."""


class MembershipRefused(ClusterError):
    """A change of the members that was not made; the message says why and what to do."""


class SecretRefused(ClusterError):
    """A cluster secret or join token that cannot be used; the message says what to do."""


class WrongCluster(ClusterError):
    """This node's data and the nodes that it was told to join belong to different clusters."""
