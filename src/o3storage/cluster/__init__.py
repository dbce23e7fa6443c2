"""The cluster: ranges as Raft groups, their replicas on this node, and bodies.

node = await Node.open(store, Catalog(), keys=keys, jobs=jobs, clock=clock, entropy=entropy)
result = await node.submit(command)              # linearizable, durable when it returns
answer = await node.query(query)                 # one instant between call and return
upload = node.new_stream(bucket_id, key)
await upload.write(block, last=True)
await node.submit(put_object, upload.frames)     # the command names upload.ref.pack()
"""

from o3storage.cluster._errors import (
    BodyDamaged,
    BodyMissing,
    ClusterError,
    StorageFull,
    Unavailable,
)
from o3storage.cluster._node import Node, Query, node_id
from o3storage.cluster._ranges import FIRST_KEY_GROUP, SYSTEM_GROUP, RangeTable
from o3storage.cluster._reading import MISS
from o3storage.cluster._streams import StreamUpload, UploadFrames
from o3storage.storage import Miss

__all__ = [
    "FIRST_KEY_GROUP",
    "MISS",
    "SYSTEM_GROUP",
    "BodyDamaged",
    "BodyMissing",
    "ClusterError",
    "Miss",
    "Node",
    "Query",
    "RangeTable",
    "StorageFull",
    "StreamUpload",
    "Unavailable",
    "UploadFrames",
    "node_id",
]
