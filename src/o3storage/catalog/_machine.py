"""The catalog as the state machine that the cluster drives."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any, Final

from o3storage.runtime.state_machine import Read

from . import _apply_objects as objects
from . import _apply_uploads as uploads
from . import _commands as c
from . import _split, _values
from ._apply_system import APPLIES
from ._errors import CatalogError
from ._keys import TABLE_PART, TABLE_VERSION, bucket_prefix, keyed, split_keyed
from ._queries import FIRST_KEY_RANGE
from ._query import Query
from ._range import Apply, Range
from ._rows import part_body
from ._versions import version_body
from ._wire import FORMAT, PUT_OBJECT, PUT_PART, decode, encode

_APPLIES: Final[dict[type[Any], Callable[[Range, Any], Apply]]] = {
    **APPLIES,
    c.DeleteObject: objects.delete_object,
    c.DeleteObjects: objects.delete_objects,
    c.SetTags: objects.set_tags,
    c.CreateUpload: uploads.create_upload,
    c.CompleteUpload: uploads.complete_upload,
    c.AbortUpload: uploads.abort_upload,
    c.AbandonStream: uploads.abandon_stream,
    c.Collect: uploads.collect,
}

_ADDING: Final = frozenset(
    {
        c.CreateBucket,
        c.SetBucketSetting,
        c.PutAccessKey,
        c.PutObject,
        c.PutPart,
        c.CreateUpload,
        c.SetTags,
    }
)


class Catalog:
    """`runtime.state_machine.StateMachine`. `group` names the range whose own rows (clock, sums,
    copies of bucket settings) commands change; range 0 has none of these."""

    __slots__ = ("_range",)

    def __init__(self, group: int = FIRST_KEY_RANGE) -> None:
        self._range = Range(group)

    def of_group(self, group: int) -> Catalog:
        """The machine that applies that range's entries."""
        return Catalog(group)

    def route(self, command: c.Command) -> bytes:
        """The row key that decides which range takes the command; b"" for range 0."""
        if isinstance(command, c.DeleteObjects):
            return keyed(TABLE_VERSION, command.bucket_id, command.items[0].key)
        if isinstance(command, c.SyncBucket | c.PurgeBucket):
            return bucket_prefix(TABLE_VERSION, command.bucket_id)
        if type(command) in APPLIES:
            return b""
        return keyed(TABLE_VERSION, command.bucket_id, command.key)  # type: ignore[union-attr]

    def touches_only(self, data: bytes, low: bytes, high: bytes | None) -> bool:
        """See `runtime.state_machine.StateMachine.touches_only`."""
        command = decode(data)
        span = _split.whole(command)
        if span is not None:
            return span[1][1:] > low and (high is None or span[0][1:] < high)
        routes = self.items(command) or (self.route(command),)
        bounds = [route[1:] for route in routes]
        return min(bounds) >= low and (high is None or max(bounds) < high)

    def whole(self, command: c.Command) -> tuple[bytes, bytes] | None:
        """See `runtime.state_machine.StateMachine.whole`."""
        return _split.whole(command)

    def joined(self, results: Sequence[Any]) -> Any:
        """See `runtime.state_machine.StateMachine.joined`."""
        return _split.joined(results)

    def items(self, command: c.Command) -> Sequence[bytes] | None:
        """See `runtime.state_machine.StateMachine.items`."""
        if not isinstance(command, c.DeleteObjects):
            return None
        return [keyed(TABLE_VERSION, command.bucket_id, item.key) for item in command.items]

    def part(self, command: c.Command, positions: Sequence[int]) -> c.Command:
        """See `runtime.state_machine.StateMachine.part`."""
        assert isinstance(command, c.DeleteObjects)
        return _split.part(command, positions)

    def split(
        self, child: int, cut: bytes, high: bytes | None
    ) -> Generator[Read, Any, list[tuple[bytes, bytes | None]] | str]:
        """See `runtime.state_machine.StateMachine.split`."""
        return _split.split_range(self._range, Range(child), cut, high)

    def stream_route(self, bucket_id: int, key: bytes) -> bytes:
        """What routes every command that may name a stream of this (bucket, key)."""
        return keyed(TABLE_VERSION, bucket_id, key)

    def abandon(self, route: bytes, stream: bytes, proposed_ns: int) -> c.AbandonStream:
        """The command that gives up a stream opened under `route` (of `stream_route`)."""
        bucket_id, key, _ = split_keyed(route)
        return c.AbandonStream(bucket_id, key, stream, proposed_ns)

    def bodies(self, key: bytes, value: bytes) -> tuple[bytes, ...]:
        """Packed references of the bodies that a row names."""
        if key[0] == TABLE_VERSION:
            body = version_body(value)
        elif key[0] == TABLE_PART:
            body = part_body(value)
        else:
            return ()
        return (body,) if body else ()

    def adds(self, command: c.Command) -> bool:
        """See `runtime.state_machine.StateMachine.adds`."""
        return type(command) in _ADDING

    def encode(self, command: c.Command) -> bytes:
        """A command as bytes. Raises ValueError for fields beyond the limits."""
        return encode(command)

    def decode(self, data: bytes) -> c.Command:
        """The command in bytes. Raises ValueError."""
        return decode(data)

    def encode_query(self, query: Query[Any]) -> bytes:
        """See `runtime.state_machine.StateMachine.encode_query`."""
        return _values.encode_query(query)

    def decode_query(self, data: bytes) -> Query[Any]:
        """See `runtime.state_machine.StateMachine.decode_query`."""
        return _values.decode_query(data)

    def encode_answer(self, result: Any, error: Exception | None) -> bytes:
        """See `runtime.state_machine.StateMachine.encode_answer`."""
        return _values.encode_answer(result, error)

    def decode_answer(self, data: bytes) -> tuple[Any, CatalogError | None]:
        """See `runtime.state_machine.StateMachine.decode_answer`."""
        return _values.decode_answer(data)

    def apply(self, data: bytes) -> Apply:
        """Apply an encoded command. Raises ValueError, here or while it runs, for bytes that no
        version of this program wrote and for rows that contradict each other."""
        if len(data) > 1 and data[1] == FORMAT:
            if data[0] == PUT_OBJECT:
                return objects.put_object(self._range, data)
            if data[0] == PUT_PART:
                return uploads.put_part(self._range, data)
        command = decode(data)
        return _APPLIES[type(command)](self._range, command)
