"""The cluster: ranges as Raft groups, their replicas on this node, and bodies.

node = await Node.open(store, Catalog(), keys=keys, jobs=jobs, clock=clock, entropy=entropy)
result = await node.submit(command)              # linearizable, durable when it returns
answer = await node.query(query)                 # one instant between call and return
upload = node.new_stream(bucket_id, key)
await upload.write(block, last=True)
await node.submit(put_object, upload.frames)     # the command names upload.ref.pack()
"""

from o3storage.cluster._alone import decides_alone
from o3storage.cluster._clustered import Clustered, open_clustered
from o3storage.cluster._errors import (
    BodyDamaged,
    BodyMissing,
    ClusterError,
    MembershipRefused,
    SecretRefused,
    StorageFull,
    Unavailable,
    WrongCluster,
)
from o3storage.cluster._join import parse_peers
from o3storage.cluster._join import show as show_address
from o3storage.cluster._lost_rows import others_have_rows
from o3storage.cluster._membership import ClusterOptions, Membership
from o3storage.cluster._node import Node, node_id
from o3storage.cluster._queries import Query
from o3storage.cluster._range_rows import SplitRefused
from o3storage.cluster._ranges import FIRST_KEY_GROUP, SYSTEM_GROUP, RangeTable
from o3storage.cluster._reading import MISS
from o3storage.cluster._secret import ClusterSecret, parse_token
from o3storage.cluster._secret import from_environment as secret_from_environment
from o3storage.cluster._streams import StreamUpload, UploadFrames
from o3storage.cluster._tls_network import TlsNetwork
from o3storage.storage import Miss

__all__ = [
    "FIRST_KEY_GROUP",
    "MISS",
    "SYSTEM_GROUP",
    "BodyDamaged",
    "BodyMissing",
    "ClusterError",
    "ClusterOptions",
    "ClusterSecret",
    "Clustered",
    "Membership",
    "MembershipRefused",
    "Miss",
    "Node",
    "Query",
    "RangeTable",
    "SecretRefused",
    "SplitRefused",
    "StorageFull",
    "StreamUpload",
    "TlsNetwork",
    "Unavailable",
    "UploadFrames",
    "WrongCluster",
    "decides_alone",
    "node_id",
    "open_clustered",
    "others_have_rows",
    "parse_peers",
    "parse_token",
    "secret_from_environment",
    "show_address",
]
