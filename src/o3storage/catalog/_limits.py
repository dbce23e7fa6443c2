"""Every bound of the catalog, with its reason. Bytes unless the name says otherwise."""

from __future__ import annotations

from typing import Final

MAX_KEY_BYTES: Final = 1024
"""S3's limit on an object key in UTF-8."""

MAX_NAME_BYTES: Final = 255
"""Names of buckets, owners, settings and nodes: one length byte in the codec."""

MAX_SETTING_BYTES: Final = 64 * 1024
"""One bucket setting (a canonical CORS or policy document); S3's own limits are 20 to 64 KB."""

MAX_SETTINGS_PER_BUCKET: Final = 32
"""Kinds of settings a bucket row can hold; S3 has about twenty."""

MAX_SETTINGS_BYTES: Final = 512 * 1024
"""All settings of a bucket: they lie in one row, which ends at 1 MiB, and which a snapshot sends
whole, in a piece of at most 1,000 KiB that may hold 256 KiB of other rows."""

MAX_HEADERS_BYTES: Final = 16 * 1024
"""All stored response headers of an object: an HTTP head is at most 16 KiB."""

MAX_METADATA_BYTES: Final = 16 * 1024
"""User metadata as stored. S3's 2 KB is checked by the S3 layer; this bounds a row."""

MAX_TAGS: Final = 50
"""Tags of one object (10) or bucket (50); the S3 layer checks which."""

MAX_TAGS_BYTES: Final = 50 * 1024
"""50 tags of 128 + 256 characters of up to 4 bytes, rounded down to what a row may hold."""

MAX_PARTS: Final = 10_000
"""S3's limit on part numbers, hence on parts."""

MAX_PART_BITMAP_BYTES: Final = MAX_PARTS // 8 + 1
"""One bit per part number, bit 0 unused."""

PART_INDEX_STRIDE: Final = 128
"""A version of more parts than this carries the offset of every 128th, so that the part holding a
byte is found by reading at most 128 part rows; 10,000 parts need 78 marks of 10 bytes."""

MAX_OBJECT_BYTES: Final = 50 * 1000**4 + 1024**4
"""Objects reach 50 TB (S3's limit); one TiB of slack so that 50 TiB readings of it fit too."""

MAX_EXAMINED: Final = 10_000
"""Rows one listing page may look at before it ends truncated with a token, so that a million
delete markers do not stall a request."""

MAX_PAGE: Final = 1000
"""Entries of one page: S3's max-keys, and the most rows one step may touch."""

LIST_STEP_ROWS: Final = 256
"""Rows that a listing asks for at a time: the node serves others in between, and making entries of
so many takes a tenth of a millisecond. Most listings are shorter."""

MAX_DELETES_PER_COMMAND: Final = 100
"""Items of one DeleteObjects: each reads and writes a few rows; a step handles at most 1,000."""

COLLECT_STEP_ROWS: Final = 500
"""Part rows that one Collect removes: each also releases a stream, and a step handles 1,000."""

ABANDON_STEP_ROWS: Final = 1000
"""Rows that one AbandonStream examines before it asks to be proposed again."""

STREAM_LIFE_NS: Final = 7 * 24 * 3600 * 10**9
"""An entry that names a stream older than this by the range's clock fails at apply."""

ABANDONED_KEPT_NS: Final = 8 * 24 * 3600 * 10**9
"""An abandon row outlives every entry that could still name its stream by a day."""

COMPLETED_KEPT_NS: Final = 24 * 3600 * 10**9
"""Completing an upload again answers the same for a day (AWS, CompleteMultipartUpload)."""

DEAD_BUCKET_KEPT_NS: Final = 8 * 24 * 3600 * 10**9
"""A range remembers a deleted bucket this long, so that a late copy of its settings cannot bring
it back."""

MAX_TIME_NS: Final = 1 << 62
"""Latest time a proposer may stamp (year 2116): the version order stays below 2**63."""

MAX_SECRET_BYTES: Final = 1024
"""A sealed access-key secret."""

STREAM_REF_BYTES: Final = 60
"""crypto.StreamRef.pack(): stream id 16, salt 32, epoch 4, size 8."""

STREAM_ID_BYTES: Final = 16
UPLOAD_ID_BYTES: Final = 16
BLAKE3_BYTES: Final = 32
