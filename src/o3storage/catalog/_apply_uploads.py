"""Applying the commands on multipart uploads and streams, and the chores that clean up."""

from __future__ import annotations

from o3storage.runtime.state_machine import Get, Outcome, Row, Scan

from ._codec import pack_checksum, split_etag
from ._commands import (
    AbandonStream,
    AbortUpload,
    Collect,
    CompleteUpload,
    CreateUpload,
)
from ._errors import NoSuchUpload, UploadChanged
from ._keys import (
    TABLE_PART,
    TABLE_VERSION,
    abandoned_row,
    after_prefix,
    chore_row,
    keyed,
    part_row,
    upload_row,
)
from ._limits import (
    ABANDON_STEP_ROWS,
    ABANDONED_KEPT_NS,
    COLLECT_STEP_ROWS,
    COMPLETED_KEPT_NS,
    MAX_PARTS,
)
from ._parts import has_bit
from ._range import (
    Apply,
    Change,
    Range,
    Rows,
    check_condition,
    check_copy,
    newest_version,
    next_order,
    refused,
)
from ._rows import (
    CHORE_ABANDONED,
    CHORE_COMPLETED,
    CHORE_PARTS,
    CHORE_UNUSED,
    ENABLED,
    UNVERSIONED,
    pack_abandoned,
    pack_chore,
    pack_completed,
    pack_state,
    pack_upload,
    part_size,
    part_stream,
    unpack_abandoned,
    unpack_chore,
    unpack_state,
    unpack_upload,
    upload_is_completed,
    upload_sums,
    with_upload_sums,
)
from ._types import AbandonResult, CompletedUpload, PartResult, PutResult, StepResult
from ._versions import HAS_BODY, pack_completed_version, version_modified_ns, version_stream
from ._wire import split_part


def create_upload(rng: Range, command: CreateUpload) -> Apply:
    _, error = check_copy(
        (yield Get(rng.copy_row(command.bucket_id))), command.bucket_id, command.epoch
    )
    if error is not None:
        return refused(error)
    row_key = upload_row(command.bucket_id, command.key, command.upload_id)
    if (yield Get(row_key)) is not None:
        return Outcome()
    state = unpack_state((yield Get(rng.state_row)))
    state.uploads += 1
    value = pack_upload(
        initiated_ns=command.proposed_ns,
        owner=command.owner,
        checksum_algorithm=command.checksum_algorithm,
        checksum_type=command.checksum_type,
        headers=command.headers,
        metadata=command.metadata,
        tags=command.tags,
    )
    return Outcome(None, None, [(row_key, value), (rng.state_row, pack_state(state))])


def put_part(rng: Range, data: bytes) -> Apply:
    """PutPart, from its bytes: the part row it carries is copied, not decoded."""
    put = split_part(data)
    bucket_id = put.bucket_id
    key = put.key
    _, error = check_copy((yield Get(rng.copy_row(bucket_id))), bucket_id, put.epoch)
    if error is not None:
        return refused(error)
    upload_key = upload_row(bucket_id, key, put.upload_id)
    upload = yield Get(upload_key)
    if upload is None or upload_is_completed(upload):
        return refused(NoSuchUpload(key, put.upload_id))
    change = Change(bucket_id, key, b"", unpack_state((yield Get(rng.state_row))))
    value = put.value
    if value[1] & HAS_BODY:
        now_ns = max(change.state.clock_ns, put.proposed_ns)
        error = yield from change.check_stream(part_stream(value), put.started_ns, now_ns)
        if error is not None:
            return refused(error)
    row_key = part_row(bucket_id, key, put.upload_id, put.number)
    old = yield Get(row_key)
    changes, parts, size = upload_sums(upload)
    added = part_size(value)
    if old is None:
        parts += 1
    else:
        added -= part_size(old)
        if old[1] & HAS_BODY:
            change.released.append(part_stream(old))
    change.state.upload_size_bytes += added
    changes += 1
    change.rows.append((row_key, value))
    change.rows.append((upload_key, with_upload_sums(upload, changes, parts, size + added)))
    return change.outcome(rng, PartResult(changes, old is not None))


def complete_upload(rng: Range, command: CompleteUpload) -> Apply:
    bucket_id = command.bucket_id
    key = command.key
    versioning, error = check_copy((yield Get(rng.copy_row(bucket_id))), bucket_id, command.epoch)
    if error is not None:
        return refused(error)
    upload_key = upload_row(bucket_id, key, command.upload_id)
    upload = yield Get(upload_key)
    if upload is None:
        return refused(NoSuchUpload(key, command.upload_id))
    if upload_is_completed(upload):
        done = unpack_upload(key, command.upload_id, upload).completed
        assert done is not None
        return Outcome(_completed_result(done, True))
    changes, parts, parts_size = upload_sums(upload)
    if changes != command.changes:
        return refused(UploadChanged(command.changes, changes))
    if command.part_count > parts:
        raise ValueError("a completion of more parts than were uploaded")
    prefix = keyed(TABLE_VERSION, bucket_id, key)
    newest = yield from newest_version(prefix, only_null=versioning == UNVERSIONED)
    if command.condition is not None:
        error = check_condition(key, command.condition, newest and newest[1])
        if error is not None:
            return refused(error)
    change = Change(bucket_id, key, prefix, unpack_state((yield Get(rng.state_row))))
    order = next_order(change.state, command.proposed_ns)
    change.state.uploads -= 1
    change.state.upload_size_bytes -= parts_size
    unused = command.part_count != parts
    template = pack_completed_version(
        upload,
        upload_id=command.upload_id,
        size_bytes=command.size_bytes,
        etag=split_etag(command.etag),
        blake3=command.blake3,
        checksum=pack_checksum(command.checksum),
        part_count=command.part_count,
        part_bitmap=command.part_bitmap if unused else b"",
        part_index=command.part_index,
    )
    yield from change.place(versioning, newest, template, order)
    is_null = versioning != ENABLED
    done = CompletedUpload(
        order,
        order,
        is_null,
        versioning != UNVERSIONED,
        command.size_bytes,
        command.etag,
        command.checksum,
    )
    change.rows.append((upload_key, pack_completed(version_modified_ns(template), done)))
    change.add_chore(CHORE_COMPLETED, command.upload_id, pack_chore(order + COMPLETED_KEPT_NS))
    if unused:
        change.add_chore(CHORE_UNUSED, command.upload_id, pack_chore(0, 0, command.part_bitmap))
    return change.outcome(rng, _completed_result(done, False))


def _completed_result(done: CompletedUpload, repeated: bool) -> PutResult:
    return PutResult(
        done.order,
        done.is_null,
        done.versioned,
        repeated,
        done.etag,
        done.size_bytes,
        done.checksum,
    )


def abort_upload(rng: Range, command: AbortUpload) -> Apply:
    bucket_id = command.bucket_id
    _, error = check_copy((yield Get(rng.copy_row(bucket_id))), bucket_id, command.epoch)
    if error is not None:
        return refused(error)
    upload_key = upload_row(bucket_id, command.key, command.upload_id)
    upload = yield Get(upload_key)
    if upload is None or upload_is_completed(upload):
        return refused(NoSuchUpload(command.key, command.upload_id))
    change = Change(bucket_id, command.key, b"", unpack_state((yield Get(rng.state_row))))
    _, parts, size = upload_sums(upload)
    change.state.uploads -= 1
    change.state.upload_size_bytes -= size
    change.rows.append((upload_key, None))
    if parts:
        change.add_chore(CHORE_PARTS, command.upload_id, pack_chore(0))
    return change.outcome(rng, None)


def collect(rng: Range, command: Collect) -> Apply:
    """One step of a chore; nothing if it is not there (done by another) or not due yet."""
    row_key = chore_row(command.bucket_id, command.key, command.chore, command.subject)
    chore = yield Get(row_key)
    if chore is None:
        return Outcome(StepResult(True))
    due_ns, next_part, bitmap = unpack_chore(chore)
    state = unpack_state((yield Get(rng.state_row)))
    if max(state.clock_ns, command.proposed_ns) < due_ns:
        return Outcome(StepResult(True))
    rows: Rows = []
    released: list[bytes] = []
    done = True
    if command.chore in {CHORE_PARTS, CHORE_UNUSED}:
        parts = keyed(TABLE_PART, command.bucket_id, command.key) + command.subject
        found: list[Row] = yield Scan(
            parts + next_part.to_bytes(2, "big"), after_prefix(parts), COLLECT_STEP_ROWS
        )
        for part_key, value in found:
            number = int.from_bytes(part_key[-2:], "big")
            if command.chore == CHORE_UNUSED and has_bit(bitmap, number):
                continue
            rows.append((part_key, None))
            if value[1] & HAS_BODY:
                released.append(part_stream(value))
        done = len(found) < COLLECT_STEP_ROWS
        if not done:
            last = int.from_bytes(found[-1][0][-2:], "big")
            done = last >= MAX_PARTS
            if not done:
                rows.append((row_key, pack_chore(due_ns, last + 1, bitmap)))
    elif command.chore == CHORE_COMPLETED:
        upload_key = upload_row(command.bucket_id, command.key, command.subject)
        upload = yield Get(upload_key)
        if upload is not None and upload_is_completed(upload):
            rows.append((upload_key, None))
    elif command.chore == CHORE_ABANDONED:
        stream_key = abandoned_row(command.bucket_id, command.key, command.subject)
        if (yield Get(stream_key)) is not None:
            rows.append((stream_key, None))
            state.abandoned -= 1
    if done:
        rows.append((row_key, None))
        state.garbage -= 1
        rows.append((rng.state_row, pack_state(state)))
    return Outcome(StepResult(done), None, rows, released)


def abandon_stream(rng: Range, command: AbandonStream) -> Apply:
    """Fence the stream, then search the rows under its key for it, at most ABANDON_STEP_ROWS a
    step: first the versions, then the parts. Nothing can name it after the fence, so what the
    search has passed stays true."""
    bucket_id = command.bucket_id
    row_key = abandoned_row(bucket_id, command.key, command.stream)
    chore_key = chore_row(bucket_id, command.key, CHORE_ABANDONED, command.stream)
    versions = keyed(TABLE_VERSION, bucket_id, command.key)
    parts = keyed(TABLE_PART, bucket_id, command.key)
    abandoned = yield Get(row_key)
    decided, cursor = (False, versions) if abandoned is None else unpack_abandoned(abandoned)
    if decided:
        return Outcome(AbandonResult("abandoned"))
    state = unpack_state((yield Get(rng.state_row)))
    left = ABANDON_STEP_ROWS
    named = False
    ended = False
    while left and not named and not ended:
        in_versions = cursor.startswith(versions)
        found: list[Row] = yield Scan(
            cursor, after_prefix(versions if in_versions else parts), left
        )
        stream_of = version_stream if in_versions else part_stream
        named = any(stream_of(value) == command.stream for _, value in found)
        if len(found) < left:
            ended = not in_versions
            cursor = parts
        elif found:
            cursor = found[-1][0] + b"\x00"
        left -= len(found)
    rows: Rows = []
    if named:
        if abandoned is not None:
            rows += ((row_key, None), (chore_key, None))
            state.abandoned -= 1
            state.garbage -= 1
            rows.append((rng.state_row, pack_state(state)))
        return Outcome(AbandonResult("named"), None, rows)
    rows.append((row_key, pack_abandoned(ended, b"" if ended else cursor)))
    if abandoned is None:
        due_ns = max(state.clock_ns, command.proposed_ns) + ABANDONED_KEPT_NS
        rows.append((chore_key, pack_chore(due_ns)))
        state.abandoned += 1
        state.garbage += 1
        rows.append((rng.state_row, pack_state(state)))
    return Outcome(AbandonResult("abandoned" if ended else "more"), None, rows)
