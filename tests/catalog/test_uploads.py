"""Rules of multipart uploads, of streams that are given up, and of the chores behind them."""

from __future__ import annotations

import pytest

from o3storage import catalog as c
from o3storage.catalog import _apply_uploads, _limits
from tests.catalog.making import DAY, ETAG, NOW, World, body, stream


def test_complete_names_the_parts_and_copies_nothing() -> None:
    world = World()
    upload = world.upload(
        headers={"content-type": "a/b"}, metadata={"m": "1"}, tags=[("t", "1")],
        checksum_algorithm="CRC32", checksum_type="COMPOSITE",
    )  # fmt: skip
    world.node.now_ns += 10**9
    for number in (1, 2, 3):
        assert world.part(upload, number, number).changes == number
    counts = world.counts()
    assert (counts.uploads, counts.upload_size_bytes, counts.objects) == (1, 30, 0)
    rows = {key for key in world.node.rows.keys if key[0] == 0x23}
    checksum = c.Checksum("CRC32", "COMPOSITE", b"sums")
    world.node.now_ns += 10**9
    result = world.submit(world.completion(upload, [(1, 10), (2, 10), (3, 10)], checksum=checksum))
    assert {key for key in world.node.rows.keys if key[0] == 0x23} == rows
    info = world.head()
    assert (info.order, info.size_bytes, info.etag) == (result.order, 30, f"{ETAG}-3")
    assert (info.upload_id, info.part_count, info.part_bitmap) == (upload, 3, b"")
    assert (info.headers, info.metadata, info.tags) == (
        {"content-type": "a/b"}, {"m": "1"}, [("t", "1")],
    )  # fmt: skip
    assert info.checksum == checksum
    assert info.modified_ns == NOW, "Last-Modified is the time of initiation"
    counts = world.counts()
    assert (counts.uploads, counts.upload_size_bytes, counts.objects) == (0, 0, 1)


def test_completing_again_answers_the_same_for_a_day() -> None:
    world = World("Enabled")
    upload = world.upload()
    world.part(upload, 1, 1)
    command = world.completion(upload, [(1, 10)])
    first = world.submit(command)
    assert not first.repeated
    world.delete(version=first.order)
    again = world.submit(command)
    assert again.repeated
    assert (again.version_id, again.etag, again.size_bytes) == (
        first.version_id, first.etag, first.size_bytes,
    )  # fmt: skip
    world.chores(NOW + DAY - 1)
    assert world.submit(command).repeated
    world.chores(NOW + DAY)
    with pytest.raises(c.NoSuchUpload):
        world.submit(command)
    assert world.counts().garbage == 0


def test_a_completion_from_an_old_reading_is_refused() -> None:
    world = World()
    upload = world.upload()
    world.part(upload, 1, 1)
    command = world.completion(upload, [(1, 10)])
    world.part(upload, 1, 2)
    with pytest.raises(c.UploadChanged):
        world.submit(command)
    assert world.ask(c.get_upload(world.bucket.bucket_id, b"k", upload)).completed is None


def test_a_completion_checks_its_condition_at_apply() -> None:
    world = World()
    upload = world.upload()
    world.part(upload, 1, 1)
    world.put(number=9)
    with pytest.raises(c.PreconditionFailed):
        world.submit(
            world.completion(upload, [(1, 10)], condition=c.WriteCondition(if_none_match="*"))
        )
    world.submit(world.completion(upload, [(1, 10)], condition=c.WriteCondition(if_match=ETAG)))
    assert world.node.released == [stream(9)]


def test_replacing_a_part_releases_its_stream() -> None:
    world = World()
    upload = world.upload()
    world.part(upload, 5, 1)
    result = world.part(upload, 5, 2, size_bytes=7)
    assert (result.changes, result.replaced) == (2, True)
    assert world.node.released == [stream(1)]
    page = world.ask(c.list_parts(world.bucket.bucket_id, b"k", upload))
    assert [(p.number, p.size_bytes, p.body) for p in page.parts] == [(5, 7, body(2))]
    assert world.counts().upload_size_bytes == 7


def test_unused_parts_are_collected_and_used_ones_stay() -> None:
    world = World()
    upload = world.upload()
    for number in (1, 2, 3, 4):
        world.part(upload, number, number)
    world.submit(world.completion(upload, [(2, 10), (4, 10)]))
    info = world.head()
    spans = world.ask(c.parts_from(world.bucket.bucket_id, info))
    assert [(s.number, s.offset) for s in spans] == [(2, 0), (4, 10)]
    world.chores()
    assert sorted(world.node.released) == [stream(1), stream(3)]
    spans = world.ask(c.parts_from(world.bucket.bucket_id, info))
    assert [(s.number, s.offset) for s in spans] == [(2, 0), (4, 10)]


def test_overwriting_a_multipart_object_collects_its_parts_in_steps() -> None:
    world = World()
    upload = world.upload()
    for number in (1, 2, 3):
        world.part(upload, number, number)
    world.submit(world.completion(upload, [(1, 10), (2, 10), (3, 10)]))
    info = world.head()
    world.put(number=9)
    assert world.node.released == []
    with pytest.raises(c.NoSuchVersion):
        world.ask(c.parts_from(world.bucket.bucket_id, info))
    world.chores()
    assert sorted(world.node.released) == [stream(1), stream(2), stream(3)]
    assert world.counts().garbage == 1, "the memory of the completion waits for a day"


def test_collecting_many_parts_takes_bounded_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_apply_uploads, "COLLECT_STEP_ROWS", 4)
    world = World()
    upload = world.upload()
    for number in range(1, 11):
        world.part(upload, number, number)
    world.submit(c.AbortUpload(*world.at, b"k", upload, NOW))
    with pytest.raises(c.NoSuchUpload):
        world.part(upload, 11, 11)
    assert world.counts().uploads == 0 and world.counts().upload_size_bytes == 0
    (command,), _ = world.ask(c.chores(NOW))
    sizes = []
    while True:
        before = len(world.node.released)
        done = world.submit(command).done
        sizes.append(len(world.node.released) - before)
        if done:
            break
    assert sizes == [4, 4, 2]
    assert world.submit(command).done, "a repeated chore does nothing"
    assert world.counts().garbage == 0
    assert not [key for key in world.node.rows.keys if key[0] >= 0x20]


def test_abort_of_a_completed_upload_is_refused() -> None:
    world = World()
    upload = world.upload()
    world.part(upload, 1, 1)
    world.submit(world.completion(upload, [(1, 10)]))
    with pytest.raises(c.NoSuchUpload):
        world.submit(c.AbortUpload(*world.at, b"k", upload, NOW))
    with pytest.raises(c.NoSuchUpload):
        world.part(upload, 2, 2)


def test_ten_thousand_parts_of_uneven_size_are_found_by_bounded_reads() -> None:
    world = World()
    upload = world.upload()
    sizes = [(number, 10 + number % 3) for number in range(1, 10_001)]
    for number, size in sizes:
        world.part(upload, number, number, size_bytes=size)
    command = world.completion(upload, sizes)
    assert len(command.part_index) == 78 * 10
    assert len(world.node.catalog.encode(command)) < 2500
    world.submit(command)
    info = world.head()
    starts = {}
    offset = 0
    for number, size in sizes:
        starts[number] = offset
        offset += size
    rows = world.node.rows
    for number in (1, 2, 127, 128, 129, 130, 5000, 9984, 9985, 10_000):
        for at in (starts[number], starts[number] + 9):
            rows.rows_read = 0
            (span,) = world.ask(c.parts_from(world.bucket.bucket_id, info, at, 1))
            assert (span.number, span.offset) == (number, starts[number])
            assert rows.rows_read <= 129
        rows.rows_read = 0
        span = world.ask(c.part_of_version(world.bucket.bucket_id, info, number))
        assert (span.number, span.offset) == (number, starts[number])
        assert rows.rows_read <= 129
    assert world.ask(c.parts_from(world.bucket.bucket_id, info, offset, 1)) == []
    assert world.ask(c.part_of_version(world.bucket.bucket_id, info, 10_001)) is None
    page = world.ask(c.parts_of_version(world.bucket.bucket_id, info, 9_990))
    assert [span.number for span in page] == list(range(9_991, 10_001))


def test_chosen_parts_must_ascend_and_stay_in_range() -> None:
    chosen = c.ChosenParts()
    chosen.add(2, 5)
    for number in (2, 1, 0, 10_001):
        with pytest.raises(ValueError, match="ascend"):
            chosen.add(number, 1)
    with pytest.raises(ValueError, match="50 TB"):
        chosen.add(3, _limits.MAX_OBJECT_BYTES)


def test_new_upload_ids_sort_by_time() -> None:
    early = c.new_upload_id(NOW, b"\xff" * 8)
    late = c.new_upload_id(NOW + 1, b"\x00" * 8)
    assert early < late and len(early) == 16
    with pytest.raises(ValueError, match="eight"):
        c.new_upload_id(NOW, b"")


def test_creating_the_same_upload_twice_changes_nothing() -> None:
    world = World()
    world.upload()
    world.upload()
    assert world.counts().uploads == 1


# --- streams


def test_abandoning_an_unnamed_stream_stops_entries_that_name_it() -> None:
    world = World()
    bucket_id = world.bucket.bucket_id
    command = c.AbandonStream(bucket_id, b"k", stream(1), NOW)
    assert world.submit(command).state == "abandoned"
    assert world.ask(c.is_abandoned(bucket_id, b"k", stream(1)))
    with pytest.raises(c.StreamAbandoned):
        world.put(number=1)
    upload = world.upload()
    with pytest.raises(c.StreamAbandoned):
        world.part(upload, 1, 1)
    world.put(number=2)
    assert world.submit(command).state == "abandoned"
    assert world.counts().abandoned == 1


def test_abandoning_a_named_stream_does_nothing() -> None:
    world = World("Enabled")
    world.put(number=1)
    world.put(number=2)
    upload = world.upload()
    world.part(upload, 1, 3)
    before = dict(world.node.rows.values)
    for number in (1, 2, 3):
        command = c.AbandonStream(world.bucket.bucket_id, b"k", stream(number), NOW)
        assert world.submit(command).state == "named"
    assert world.node.rows.values == before


def test_abandoning_under_many_versions_takes_bounded_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_apply_uploads, "ABANDON_STEP_ROWS", 3)
    world = World("Enabled")
    for number in range(1, 9):
        world.put(number=number)
    upload = world.upload()
    for number in range(1, 6):
        world.part(upload, number, 100 + number)
    bucket_id = world.bucket.bucket_id

    def abandon(number: int) -> list[str]:
        states = []
        while not states or states[-1] == "more":
            world.node.rows.rows_read = 0
            states.append(world.submit(c.AbandonStream(bucket_id, b"k", stream(number), NOW)).state)
            assert world.node.rows.rows_read <= 3
            if states[-1] == "more":
                with pytest.raises(c.StreamAbandoned):
                    world.put(number=number)
                world.put(number=1000 + len(states) + number * 10)
        return states

    assert abandon(999)[-1] == "abandoned" and len(abandon(998)) > 3
    assert abandon(1)[-1] == "named"
    assert abandon(105)[-1] == "named"
    assert world.counts().abandoned == 2
    assert world.chores(NOW + 9 * DAY) == 2
    assert (world.counts().abandoned, world.counts().garbage) == (0, 0)


def test_abandon_rows_are_dropped_after_eight_days() -> None:
    world = World()
    world.submit(c.AbandonStream(world.bucket.bucket_id, b"k", stream(1), NOW))
    assert world.chores(NOW + 8 * DAY - 1) == 0
    early = c.Collect(world.bucket.bucket_id, b"k", 4, stream(1), NOW + 8 * DAY - 1)
    assert world.submit(early).done and world.counts().abandoned == 1
    assert world.chores(NOW + 8 * DAY) == 1
    assert world.counts().abandoned == 0
    # By then the stream is too old to be named.
    world.node.now_ns = NOW + 8 * DAY
    with pytest.raises(c.StreamExpired):
        world.put(number=1, started_ns=NOW)


def test_a_failed_command_leaves_its_stream_open() -> None:
    world = World()
    world.put(number=1)
    with pytest.raises(c.PreconditionFailed):
        world.put(number=2, condition=c.WriteCondition(if_none_match="*"))
    assert world.node.released == []
    world.put(number=2)
    assert world.node.released == [stream(1)]
