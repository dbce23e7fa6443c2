"""Which secret belongs to a key id: the root keys in memory, all others in range 0."""

from __future__ import annotations

from typing import TYPE_CHECKING

from o3storage.catalog import AccessKey, NoSuchAccessKey, get_access_key
from o3storage.s3 import Credential, Miss

from ._config import RootKey

if TYPE_CHECKING:
    from o3storage.cluster import Node

ROOT_OWNER = "root"
"""The owner that root keys act as."""


class Credentials:
    """The `CredentialSource` of the S3 layer. Removing a key takes effect at once: nothing but
    the root keys is kept here."""

    def __init__(self, node: Node, root_keys: list[RootKey]) -> None:
        self._node = node
        self._root: dict[str, Credential] = {}
        self.set_root(root_keys)

    def set_root(self, root_keys: list[RootKey]) -> None:
        """From now on these are the root keys."""
        self._root = {
            key.key_id: Credential(key.key_id, key.secret.encode(), ROOT_OWNER) for key in root_keys
        }

    def find_now(self, key_id: str) -> Credential | Miss | None:
        """The credential if that needs no waiting."""
        return self._root.get(key_id) or Miss.MISS

    async def find(self, key_id: str) -> Credential | None:
        root = self._root.get(key_id)
        if root is not None:
            return root
        try:
            found: AccessKey = await self._node.query(get_access_key(key_id))
        except NoSuchAccessKey:
            return None
        if found.status != "Active":
            return None
        return Credential(found.key_id, found.secret, found.owner)
