"""What can go wrong with keys. Every message says what to do."""

from __future__ import annotations


class KeyFault(Exception):
    """Keys are missing, wrong or damaged. Nothing was written."""


class MasterKeyMalformed(KeyFault):
    """The text is not a master key."""


class MasterKeyMissing(KeyFault):
    """There is data, but no master key that could open it."""


class MasterKeyWrong(KeyFault):
    """`node.keys` is whole and does not open with this master key."""


class NodeKeysMissing(KeyFault):
    """There is data, but no `node.keys`."""


class NodeKeysDamaged(KeyFault):
    """Neither copy in `node.keys` is whole."""


class EpochKeyMissing(KeyFault):
    """A stream names an epoch whose key this node does not hold."""
