"""The native module: bindings over well-kept Rust crates, no logic of the store.

`Buffer` arguments take any contiguous buffer (bytes, bytearray, memoryview and its slices,
AlignedBuffer); arguments named `out` must be writable (BufferError otherwise). Calls over
8 KiB give the interpreter lock away while they work; a buffer must not be written meanwhile.
Wrong lengths raise ValueError.
"""

from collections.abc import Sequence
from typing import Any, Generic, Literal, TypedDict, TypeVar

from typing_extensions import Buffer

__version__: str

T_co = TypeVar("T_co", covariant=True)

class Job(Generic[T_co]):
    """Work prepared with the interpreter lock and done without it; runs once."""
    def run(self) -> T_co: ...

# --- hashes -------------------------------------------------------------------------------------

def blake3(data: Buffer) -> bytes:
    """BLAKE3, 32 bytes."""

def blake3_parts(parts: Sequence[Buffer]) -> bytes:
    """BLAKE3 of the parts one after the other, 32 bytes."""

def blake3_job(parts: Sequence[Buffer]) -> Job[bytes]: ...
def sha256(data: Buffer) -> bytes: ...
def sha1(data: Buffer) -> bytes: ...
def md5(data: Buffer) -> bytes: ...
def crc32(data: Buffer, init: int = 0) -> int:
    """CRC-32 as zlib's (ISO-HDLC); `init` is the value of what came before."""

def crc32c(data: Buffer, init: int = 0) -> int: ...
def crc64nvme(data: Buffer, init: int = 0) -> int: ...
def crc32_combine(first: int, second: int, second_size: int) -> int:
    """CRC of a concatenation from the CRCs of its halves and the size of the second."""

def crc32c_combine(first: int, second: int, second_size: int) -> int: ...
def crc64nvme_combine(first: int, second: int, second_size: int) -> int: ...
def hmac_sha256(key: Buffer, message: Buffer) -> bytes: ...
def hkdf_sha256(secret: Buffer, salt: Buffer, info: Buffer, size: int = 32) -> bytes:
    """RFC 5869 extract and expand, at most 8,160 bytes."""

def compare_digest(a: Buffer, b: Buffer) -> bool:
    """Equality in time that depends on the lengths only."""

class Digests(TypedDict, total=False):
    """Raw digests; CRCs big-endian, as S3 base64-encodes them."""

    md5: bytes
    sha1: bytes
    sha256: bytes
    crc32: bytes
    crc32c: bytes
    crc64nvme: bytes
    blake3: bytes

class Digester:
    """Chosen digests of one byte string, in one pass. Not for use by two jobs at a time."""
    def __init__(
        self,
        *,
        md5: bool = True,
        sha256: bool = False,
        sha1: bool = False,
        crc32: bool = False,
        crc32c: bool = False,
        crc64nvme: bool = False,
        blake3: bool = True,
    ) -> None: ...
    def update(self, data: Buffer) -> None: ...
    def update_job(self, data: Buffer) -> Job[None]: ...
    def finish(self) -> Digests:
        """The digests of all so far; more may be added afterwards."""

    def copy(self) -> Digester: ...
    @property
    def size_bytes(self) -> int:
        """Bytes digested so far."""

# --- sealing ------------------------------------------------------------------------------------

TAG_BYTES: int
"""16: what sealing adds."""

class SealError(ValueError):
    """Ciphertext, associated data, nonce or key do not belong together."""

class ChaChaKey:
    """ChaCha20-Poly1305 (RFC 8439) under one 32-byte key.

    `nonce` is an int (< 2**64, stored little-endian in 12 bytes) or 12 bytes; the caller never
    uses one twice with a key. With `digester` the plaintext is digested in the same call.
    """
    def __init__(self, key: Buffer) -> None: ...
    @staticmethod
    def derive(secret: Buffer, salt: Buffer, info: Buffer) -> ChaChaKey:
        """The key HKDF-SHA256(secret, salt, info), made and kept inside the module."""

    def seal(
        self, nonce: int | Buffer, aad: Buffer, plaintext: Buffer, digester: Digester | None = None
    ) -> bytes:
        """Ciphertext and tag: 16 bytes more than `plaintext`."""

    def seal_into(
        self,
        nonce: int | Buffer,
        aad: Buffer,
        plaintext: Buffer,
        out: Buffer,
        digester: Digester | None = None,
    ) -> int:
        """Writes ciphertext and tag to the start of `out` (which must not overlap `plaintext`,
        unless both start at the same address) and returns their size."""

    def seal_hash_into(
        self,
        nonce: int | Buffer,
        aad: Buffer,
        plaintext: Buffer,
        out: Buffer,
        prefix: Buffer,
        digester: Digester | None = None,
    ) -> bytes:
        """`seal_into`, and returns BLAKE3(prefix + ciphertext + tag)."""

    def unseal(
        self, nonce: int | Buffer, aad: Buffer, ciphertext: Buffer, digester: Digester | None = None
    ) -> bytes:
        """The plaintext. Raises SealError."""

    def unseal_into(
        self,
        nonce: int | Buffer,
        aad: Buffer,
        ciphertext: Buffer,
        out: Buffer,
        digester: Digester | None = None,
    ) -> int:
        """Writes the plaintext to the start of `out` (which must have room for the tag too: the
        size of `ciphertext`) and returns its size. Raises SealError; `out` is zeroed then."""

    def seal_job(
        self, nonce: int | Buffer, aad: Buffer, plaintext: Buffer, digester: Digester | None = None
    ) -> Job[bytes]: ...
    def seal_into_job(
        self,
        nonce: int | Buffer,
        aad: Buffer,
        plaintext: Buffer,
        out: Buffer,
        digester: Digester | None = None,
    ) -> Job[int]: ...
    def unseal_job(
        self, nonce: int | Buffer, aad: Buffer, ciphertext: Buffer, digester: Digester | None = None
    ) -> Job[bytes]: ...
    def open_record_job(
        self, nonce: int | Buffer, aad: Buffer, record: Buffer, prefix_bytes: int
    ) -> Job[bytes]:
        """The plaintext sealed in `record`: BLAKE3 (32 bytes) of all that follows it, a header that
        ends at `prefix_bytes`, ciphertext, tag. SealError if the hash or the seal does not hold."""

# --- keys and randomness ------------------------------------------------------------------------

def random_bytes(size: int) -> bytes:
    """The system's randomness, XORed with the processor's (RDRAND) where there is one."""

def ed25519_generate() -> tuple[bytes, bytes]:
    """(seed of 32 bytes, public key of 32 bytes), RFC 8032."""

def ed25519_public(seed: Buffer) -> bytes: ...
def ed25519_sign(seed: Buffer, message: Buffer) -> bytes: ...
def ed25519_verify(public: Buffer, message: Buffer, signature: Buffer) -> bool: ...
def x25519_generate() -> tuple[bytes, bytes]:
    """(secret of 32 bytes, public key of 32 bytes), RFC 7748."""

def x25519_public(secret: Buffer) -> bytes: ...
def x25519_agree(secret: Buffer, public: Buffer) -> bytes:
    """The shared secret, 32 bytes. ValueError for a public key of low order."""

# --- TLS ----------------------------------------------------------------------------------------

class TlsError(Exception):
    """The handshake or a record failed. Send what `take` still gives (the alert), then close."""

class TlsConfig:
    """Certificates and rules, made once and shared by connections (TLS 1.2 and 1.3)."""
    @staticmethod
    def server(
        chain_pem: Buffer,
        key_pem: Buffer,
        *,
        client_auth: Literal["none", "optional", "required", "identity"] = "none",
        client_ca_pem: Buffer | None = None,
        alpn: Sequence[str] = (),
        tls13_only: bool = False,
    ) -> TlsConfig:
        """`chain_pem`: certificates, leaf first; `key_pem`: PKCS#8, PKCS#1 or SEC1 private key
        (ECDSA P-256/P-384, RSA, Ed25519). `client_auth`: "optional" and "required" check against
        `client_ca_pem`; "identity" requires a certificate, checks that the peer holds its key and
        nothing else: the caller must compare `peer_public_key`. Raises TlsError."""

    @staticmethod
    def client(
        *,
        ca_pem: Buffer | None,
        chain_pem: Buffer | None = None,
        key_pem: Buffer | None = None,
        alpn: Sequence[str] = (),
        tls13_only: bool = False,
    ) -> TlsConfig:
        """`ca_pem` None: as "identity" above, for the server's certificate."""

class TlsConnection:
    """One TLS connection without I/O: bytes of the wire in and out by calls.

    Server:   consumed, produced = tls.feed(wire_in, plain_out); send(tls.take())
    After each `feed` and `send` look at `wants_write` and send what `take` gives.
    """
    def __init__(self, config: TlsConfig, server_name: str | None = None) -> None:
        """`server_name` (host name or address) is needed for a client and refused for a server."""

    def feed(self, wire: Buffer, out: Buffer) -> tuple[int, int]:
        """Takes ciphertext, writes plaintext to the start of `out`: (bytes of `wire` consumed,
        bytes of `out` written). When `out` is full the rest of `wire` is not consumed: call again
        with it (also with empty `wire`, while `pending_plaintext`). Raises TlsError, after which
        only `take` is of use."""

    def send(self, plaintext: Buffer) -> int:
        """Encrypts as much as the send buffer (64 KiB) takes and returns how much that was: a
        short count is backpressure, go on after `take`. Before the handshake is done it queues."""

    def send_into(self, plaintext: Buffer, out: Buffer) -> tuple[int, int]:
        """`send` and `take_into` until either side is used up: (plaintext bytes consumed, bytes of
        `out` written). Anything queued before goes out first."""

    def take(self) -> bytes:
        """All ciphertext that waits to be sent (at most about 64 KiB); empty if none."""

    def take_into(self, out: Buffer) -> int: ...
    def close(self) -> None:
        """Queues close_notify; nothing can be sent after it."""

    def export_keying_material(self, size: int, label: Buffer, context: Buffer | None) -> bytes:
        """RFC 5705 / RFC 8446 section 7.5. Raises TlsError before the handshake is done."""

    @property
    def handshaking(self) -> bool: ...
    @property
    def wants_write(self) -> bool: ...
    @property
    def pending_plaintext(self) -> bool:
        """Decrypted bytes wait that did not fit `out`."""

    @property
    def peer_closed(self) -> bool:
        """The peer sent close_notify: an end of the connection after this is no truncation."""

    @property
    def version(self) -> str | None:
        """ "TLSv1.2" or "TLSv1.3", once known."""

    @property
    def cipher_suite(self) -> str | None: ...
    @property
    def alpn(self) -> str | None: ...
    @property
    def server_name(self) -> str | None:
        """Server only: the name that the client asked for (SNI)."""

    @property
    def peer_certificate(self) -> bytes | None:
        """DER of the peer's leaf certificate."""

    @property
    def peer_public_key(self) -> bytes | None:
        """DER SubjectPublicKeyInfo of that certificate (for Ed25519 the last 32 bytes are the
        key)."""

# --- buffers ------------------------------------------------------------------------------------

class AlignedBuffer:
    """Memory whose address is a multiple of 4,096, for direct I/O, from a pool of reused blocks;
    use `memoryview(buffer)`. Its memory goes back to the pool when nothing refers to it."""
    def __init__(self, size: int, zero: bool = True) -> None: ...
    def __len__(self) -> int: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...

def tune_memory() -> None:
    """Keeps glibc from mapping and unmapping each large block (mallopt); call once at start."""

# --- files --------------------------------------------------------------------------------------
# Each `*_job` raises OSError with errno and path from `run()` or its awaitable. Paths are whole.

class FileHandle:
    """An open file, closed when neither Python nor a job holds it any more."""
    def close_job(self) -> Job[None]:
        """Closes once the jobs that use the file are done; does nothing the second time."""

    @property
    def closed(self) -> bool: ...
    def fileno(self) -> int: ...

def pread_nowait(fd: FileHandle | int, size: int, offset: int) -> bytes | None:
    """preadv2 with RWF_NOWAIT: `size` bytes (fewer only at end of file), or None if the page cache
    lacks some of them or the file system cannot tell."""

def dup_socket(fd: int) -> FileHandle:
    """A second descriptor of a socket: it stays that socket's whoever closes the first one."""

def send_records_job(
    key: ChaChaKey,
    file: FileHandle,
    socket: FileHandle,
    frames: Sequence[tuple[int, Buffer, int, int, int, int]],
    prefix_bytes: int,
) -> Job[tuple[int, bytes]]:
    """Records (nonce, aad, offset, record bytes, low, high) as `ChaChaKey.open_record_job` opens
    them, one after the other: read from the page cache (never from the disk), checked, unsealed,
    and plaintext [low, high) sent as far as the socket has room. Ends early behind a frame that the
    socket did not take whole, and before one that is not cached or does not hold.

    (bytes that were taken from the frames, those of their end that were not sent). OSError if the
    socket is gone. At most 16 frames of at most 1 MiB."""

def open_job(path: str, flags: int, mode: int = 0o600) -> Job[FileHandle]: ...
def pread_job(fd: FileHandle | int, size: int, offset: int) -> Job[bytes]:
    """Fewer than `size` bytes only at end of file."""

def pread_into_job(fd: FileHandle | int, out: Buffer, offset: int) -> Job[int]: ...
def pwritev_job(
    fd: FileHandle | int, buffers: Sequence[Buffer], offset: int, sync: bool = False
) -> Job[None]:
    """Writes all of every buffer; with `sync` then fdatasync."""

def fdatasync_job(fd: FileHandle | int) -> Job[None]: ...
def allocate_job(fd: FileHandle | int, offset: int, size: int, zero_fill: bool) -> Job[None]: ...
def truncate_job(fd: FileHandle | int, size: int) -> Job[None]: ...
def rename_job(source: str, target: str) -> Job[None]: ...
def unlink_job(path: str) -> Job[None]: ...
def make_dir_job(path: str, mode: int = 0o700) -> Job[None]:
    """With parents; no error if it exists."""

def list_dir_job(path: str) -> Job[list[str]]: ...
def sync_dir_job(path: str) -> Job[None]: ...
def stat_size_job(fd: FileHandle | int) -> Job[int]: ...
def statfs_job(path: str) -> Job[tuple[int, int]]:
    """(total bytes, bytes free to this user)."""

def lookup_job(host: str, port: int) -> Job[list[tuple[int, str, int]]]:
    """Addresses of a name: (AF_INET or AF_INET6, address, port) in the resolver's order."""

def log_job(fd: FileHandle | int, data: Buffer) -> Job[None]:
    """Writes all of `data` to a stream; runs in order on a thread of its own. TimeoutError when
    nobody reads for five seconds; some of `data` may have been written then."""

def lock_file(path: str) -> tuple[int, int]:
    """Opens and locks `path` (flock, non-blocking): (descriptor, 0), or (-1, pid of the holder, 0
    if unknown). Writes our pid into it."""

class Pool:
    """Threads that run jobs and never take the interpreter lock while they work."""
    def __init__(self, file_threads: int = 4, pure_threads: int = 2) -> None: ...
    @property
    def event_fd(self) -> int:
        """Readable when completions wait; call `drain` then."""

    def submit(self, job: Job[Any], future: Any, background: bool = False) -> None:
        """Queues `job`; `drain` sets the result or exception of `future` (asyncio.Future or alike:
        `done()`, `set_result`, `set_exception`)."""

    def submit_many(
        self, pairs: Sequence[tuple[Job[Any], Any]], background: bool = False
    ) -> None: ...
    def drain(self, limit: int = 256) -> int:
        """Completes the futures of finished jobs, at most `limit`, and returns how many."""

    def close(self) -> None:
        """Refuses new jobs and ends the threads once all queued jobs are done. Then `drain`."""

    @property
    def pending(self) -> int:
        """Jobs submitted and not drained yet."""

# --- the index (docs/format-index.md) -----------------------------------------------------------

class BlockError(ValueError):
    """A record or block of the index is damaged, or belongs elsewhere."""

class Run:
    """An immutable sorted piece of the memtable: one block and its filter."""
    @property
    def rows(self) -> int: ...
    @property
    def size_bytes(self) -> int: ...
    def block(self) -> bytes:
        """The plain block."""

class TableIndex:
    """A table's filter and sparse block index. Raises BlockError if they are damaged."""
    def __init__(self, filter: bytes, index: bytes) -> None: ...
    def probe(self, key: bytes, prefix: int) -> int:
        """The block that may hold `key`; -1 if the filter excludes its first `prefix` bytes."""

    def seek(self, key: bytes) -> int:
        """The block in which keys >= `key` start."""

    def locate(self, number: int, count: int = 1) -> tuple[int, int]:
        """(file offset, size) of the records of `count` blocks. Raises IndexError."""

    def lower(self, number: int) -> bytes:
        """Lower bound of a block's keys. Raises IndexError."""

    @property
    def blocks(self) -> int: ...
    @property
    def size_bytes(self) -> int: ...

class TableMerger:
    """A merge of sources (newest first) into tables, in jobs of bounded work."""
    def __init__(
        self,
        sources: int,
        *,
        drop_deleted: bool,
        drops: Sequence[tuple[bytes, bytes | None, int]],
        block_bytes: int,
        table_bytes: int,
        filter_bits: int,
    ) -> None: ...
    def add_run(self, number: int, run: Run) -> None:
        """All that source `number` holds."""

    @property
    def needs_table(self) -> bool: ...
    def next_table(self, key: ChaChaKey, header: bytes) -> None: ...
    def step(
        self,
        feeds: Sequence[tuple[int, ChaChaKey | None, int, Buffer | None, bool]],
        *,
        background: bool = True,
    ) -> Job[Any]:
        """`feeds`: (source, key, file offset, row records, whether they are its last). The result
        is a dict: `out` (bytes to append to the table), `needs` (sources that must be fed), `table`
        (None, or rows, deleted, min and max sequence, first and last key, size of the table that
        `out` ends), `done`, `bad` (None, or source, file offset, reason)."""

def xxh64(data: Buffer) -> int:
    """XXH64 with seed 0."""

def index_seal(key: ChaChaKey, kind: int, offset: int, plain: Buffer) -> bytes:
    """A sealed record: header, ciphertext and tag, BLAKE3."""

def index_open(key: ChaChaKey, kind: int, offset: int, record: Buffer) -> bytes:
    """The plain content of exactly one record; hash and tag are checked. Raises BlockError."""

def index_open_rows(key: ChaChaKey, offset: int, data: Buffer) -> list[bytes]:
    """Opens consecutive row records, checking their tags (which cover the same bytes as their
    hashes). Raises BlockError(reason, number of the bad one)."""

def index_verify(
    key: ChaChaKey, offset: int, sizes: Sequence[int], data: Buffer
) -> Job[list[tuple[int, str]]]:
    """Checks consecutive row records throughout; lists the bad ones as (number, reason)."""

def index_check(data: Buffer) -> int:
    """Checks the hash of the record that starts `data`, without a key; its size. BlockError."""

def index_run(
    rows: list[tuple[bytes, bytes | None]], prefix_lengths: Sequence[int], sequence: int
) -> Run:
    """Sorts rows into a run; of equal keys the last one counts. Raises ValueError."""

def index_merge_runs(runs: Sequence[Run]) -> Job[Run]:
    """Merges runs, newest first: of equal keys the newest counts; deletions stay."""

def index_release(runs: tuple[Run, ...]) -> Job[None]:
    """Gives the memory of runs back, if the caller dropped its own references before it starts."""

def index_get(
    runs: tuple[Run, ...], key: bytes, prefix: int, floor: int = 0
) -> bytes | Literal[False] | None:
    """The newest row of `key` in runs, newest first: its value, False if deleted, None if there is
    none with a sequence above `floor`. Raises BlockError."""

def index_block_get(block: bytes, key: bytes, floor: int = 0) -> bytes | Literal[False] | None:
    """The row of `key` in one block, as `index_get`. Raises BlockError."""

def index_candidates(runs: tuple[Run, ...], prefix: bytes) -> list[Run]:
    """The runs whose filters may hold rows with this bloom prefix."""

def index_first(source: bytes | Run, prefix: bytes, floor: int = 0) -> tuple[bytes, bytes] | None:
    """The first row of one block or run whose key starts with `prefix`. None if the block cannot
    tell: the first row from there on is deleted, not above `floor`, or starts otherwise."""

def index_block_rows(block: bytes) -> list[tuple[bytes, int, int, bytes | None]]:
    """All rows as (key, prefix length, sequence, value), checked throughout. Raises BlockError."""

def index_scan(
    sources: Sequence[Sequence[bytes | Run]],
    low: bytes,
    high: bytes | None,
    limit: int,
    drops: Sequence[tuple[bytes, bytes | None, int]],
    budget: int,
    filtered: bool = False,
) -> tuple[list[tuple[bytes, bytes]], bytes | None]:
    """Merges sources, newest first, over low <= key < high: the rows (at most `limit`) and the key
    to go on from, None at the end. It stops after `budget` rows of any kind. With `filtered`, `low`
    is a bloom prefix: runs whose filter excludes it are passed over. Raises BlockError."""
