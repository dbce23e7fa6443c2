"""A flipped bit in each kind of file of a stopped store: `verify` reports it, what is damaged is an
error or a cut connection and never wrong bytes, everything else serves, and so it is after
`verify --repair`."""

from __future__ import annotations

import random
import re
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from tests.faults.client import S3, Answer
from tests.support.running_store import RunningStore, run_command

pytestmark = pytest.mark.slow

FRAME = 256 * 1024
SMALL, LARGE = "small7", "large1"
PATIENCE_S = 60.0


def expected() -> dict[str, bytes]:
    chance = random.Random(3)
    bodies = {f"small{n}": chance.randbytes(2000 + n) for n in range(40)}
    return bodies | {f"large{n}": chance.randbytes(4 * FRAME + n) for n in range(3)}


BODIES = expected()


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data directory of a stopped store that holds BODIES."""
    data_dir = tmp_path_factory.mktemp("rot") / "data"
    with RunningStore(data_dir) as store:
        s3 = S3(store)
        assert s3.call("PUT", "/bucket").status == 200
        for key, body in BODIES.items():
            assert s3.put(f"/bucket/{key}", body).status == 200
        assert store.stop() == 0
    assert verify(data_dir).returncode == 0
    return data_dir


@pytest.fixture
def data_dir(original: Path, tmp_path: Path) -> Path:
    target = tmp_path / "data"
    shutil.copytree(original, target)
    return target


def verify(data_dir: Path, *options: str):  # type: ignore[no-untyped-def]
    return run_command("verify", "--data-dir", str(data_dir), *options)


def inspect(data_dir: Path, *what: str) -> str:
    done = run_command("inspect", *what, "--data-dir", str(data_dir))
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


def flip(path: Path, offset: int, mask: int = 0x10) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ mask]))


def one(data_dir: Path, pattern: str) -> Path:
    (found,) = data_dir.glob(pattern)
    return found


def frame_of(data_dir: Path, key: str, number: int) -> int:
    """The offset of a frame's record in its volume."""
    text = inspect(data_dir, "object", f"s3://bucket/{key}")
    found = re.search(rf"frame {number}: volume \d+ offset (\d+)", text)
    assert found, text
    return int(found[1])


def record_of(data_dir: Path, kind: str) -> int:
    """The offset of the middle one of the log's records of a kind."""
    text = inspect(data_dir, "volume", "1")
    offsets = [int(m[1]) for m in re.finditer(rf"^ *(\d+) +\d+ {kind} ", text, re.M)]
    return offsets[len(offsets) // 2]


def batch_of(data_dir: Path) -> int:
    """The offset of a batch header that is followed by others."""
    data = one(data_dir, "volumes/*.log").read_bytes()
    found = [at for at in range(0, len(data), 4096) if data[at + 32 : at + 40] == b"O3BATCHh"]
    return found[len(found) // 2]


def wrong(s3: S3, may_fail: Iterable[str]) -> list[str]:
    """The keys that cannot be read in full; asserts that no wrong byte was sent, and that only
    keys of `may_fail` fail."""
    failed = []
    for key, body in BODIES.items():
        answer = s3.get(f"/bucket/{key}")
        if answer.status == 200 and not answer.cut:
            assert answer.body == body, key
            continue
        assert is_honest(answer, body), (key, answer.status, answer.headers)
        assert key in may_fail, (key, answer)
        failed.append(key)
    return failed


def is_honest(answer: Answer, body: bytes) -> bool:
    """An error, or a cut connection that carried only right bytes."""
    return answer.status in {500, 503, 404} or (
        answer.status == 200 and answer.cut and body.startswith(answer.body)
    )


def serves_new(s3: S3) -> None:
    """Writing, listing and deleting go on."""
    assert s3.put("/bucket/new", b"new").status == 200
    assert s3.get("/bucket/new").body == b"new"
    assert set(s3.keys("bucket")) == {*BODIES, "new"}
    assert s3.delete("/bucket/new").status == 204


Damage = Callable[[Path], None]


def in_log(offset: Callable[[Path], int], add: int) -> Damage:
    return lambda d: flip(one(d, "volumes/*.log"), offset(d) + add)


VOLUMES: dict[str, tuple[Damage, set[str]]] = {
    "frame of a small object": (in_log(lambda d: frame_of(d, SMALL, 0), 300), {SMALL}),
    "first frame of a large object": (
        lambda d: flip(one(d, "volumes/*.bulk"), frame_of(d, LARGE, 0) + 1000),
        {LARGE},
    ),
    "frame within a large object": (
        lambda d: flip(one(d, "volumes/*.bulk"), frame_of(d, LARGE, 2) + 1000),
        {LARGE},
    ),
    "clear header of a frame": (
        lambda d: flip(one(d, "volumes/*.bulk"), frame_of(d, LARGE, 1) + 40),
        {LARGE},
    ),
    "entry": (in_log(lambda d: record_of(d, "entry"), 100), set()),
    "outcome": (in_log(lambda d: record_of(d, "outcome"), 100), set()),
    "header of a batch": (in_log(batch_of, 60), set()),
}


@pytest.mark.parametrize("what", list(VOLUMES))
def test_in_a_volume(data_dir: Path, what: str) -> None:
    damage, may_fail = VOLUMES[what]
    damage(data_dir)
    report = verify(data_dir)
    assert report.returncode == 1 and "BAD" in report.stdout, report.stdout + report.stderr
    for _ in range(2):
        with RunningStore(data_dir) as store:
            s3 = S3(store)
            assert set(wrong(s3, may_fail)) == may_fail
            serves_new(s3)
            # The damaged one can be written anew, and deleted.
            for key in may_fail:
                assert s3.call("HEAD", f"/bucket/{key}").status == 200
            assert store.stop() == 0
        repaired = verify(data_dir, "--repair")
        assert "Traceback" not in repaired.stderr
        only_lost(verify(data_dir), [f"s3://bucket/{key} version null" for key in may_fail])
    with RunningStore(data_dir) as store:
        s3 = S3(store)
        for key in may_fail:
            assert s3.put(f"/bucket/{key}", BODIES[key]).status == 200
        assert wrong(s3, ()) == []
        assert store.stop() == 0
    report = verify(data_dir)  # what was lost was replaced: nothing is bad any more
    assert report.returncode == 0, report.stdout
    # The index can be made anew of what the repair left.
    shutil.rmtree(data_dir / "index")
    with RunningStore(data_dir) as store:
        assert wrong(S3(store), ()) == []
        assert store.stop() == 0


def only_lost(report, names: list[str]) -> None:  # type: ignore[no-untyped-def]
    """`verify` finds nothing but what is lost, and says whose it was."""
    bad = re.findall(r"^BAD (\w+)", report.stdout, re.M)
    assert set(bad) <= {"frame"} and bool(bad) == bool(names), report.stdout
    assert re.findall(r"^LOST (.*): frames [\d, ]+$", report.stdout, re.M) == names
    assert report.returncode == (1 if names else 0)


def test_the_part_of_a_multipart_object_that_is_lost_is_named(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    part = random.Random(4).randbytes(5 << 20)
    with RunningStore(data_dir) as store:
        s3 = S3(store)
        assert s3.call("PUT", "/bucket").status == 200
        started = s3.call("POST", "/bucket/pa\x1brts", query="uploads=")
        upload = re.findall(rb"<UploadId>(.*?)<", started.body)[0].decode()
        etags = [
            s3.call(
                "PUT", "/bucket/pa\x1brts", part, query=f"partNumber={n}&uploadId={upload}"
            ).headers
            for n in (1, 2, 3)
        ]
        listed = "".join(
            f"<Part><PartNumber>{n}</PartNumber><ETag>{headers['etag']}</ETag></Part>"
            for n, headers in enumerate(etags, 1)
        )
        body = f"<CompleteMultipartUpload>{listed}</CompleteMultipartUpload>".encode()
        done = s3.call("POST", "/bucket/pa\x1brts", body, query=f"uploadId={upload}")
        assert done.status == 200, done
        assert store.stop() == 0
    text = inspect(data_dir, "object", "s3://bucket/pa\x1brts")
    second = text[text.index("part 2: 5,242,880 bytes at 5,242,880") :]
    found = re.search(r"frame 3: volume (\d+) offset (\d+)", second)
    assert found, text
    flip(data_dir / f"volumes/{int(found[1]):010d}.bulk", int(found[2]) + 1000)
    name = r"s3://bucket/pa\x1brts version null, part 2"  # no escape for the terminal
    assert f"LOST {name}: frames 3" in verify(data_dir).stdout
    assert "quarantine" in verify(data_dir, "--repair").stdout
    only_lost(verify(data_dir), [name])
    with RunningStore(data_dir) as store:
        s3 = S3(store)
        answer = s3.call("GET", "/bucket/pa\x1brts", headers={"range": f"bytes={10 << 20}-"})
        assert answer.status == 206 and answer.body == part
        assert s3.call("GET", "/bucket/pa\x1brts", query="partNumber=2").cut
        assert store.stop() == 0


def test_a_cut_answer_carries_nothing_from_the_bad_frame_on(data_dir: Path) -> None:
    flip(one(data_dir, "volumes/*.bulk"), frame_of(data_dir, LARGE, 2) + 1000)
    with RunningStore(data_dir) as store:
        s3 = S3(store)
        answer = s3.get(f"/bucket/{LARGE}")
        assert answer.status == 200 and answer.cut
        # What was still on its way when the connection was cut may be lost; none of it is wrong.
        assert BODIES[LARGE][: 2 * FRAME].startswith(answer.body)
        # A range that does not touch it is served in full.
        part = s3.call("GET", f"/bucket/{LARGE}", headers={"range": f"bytes={3 * FRAME}-"})
        assert part.status == 206 and part.body == BODIES[LARGE][3 * FRAME :]
        assert s3.metric("o3_http_aborted_total") == 1
        assert store.stop() == 0
    log = (data_dir.parent / "data.log").read_text()
    assert "damaged" in log


@pytest.mark.parametrize("kind", ["log", "bulk"])
def test_in_one_copy_of_a_volume_header(data_dir: Path, kind: str) -> None:
    flip(one(data_dir, f"volumes/*.{kind}"), 60)
    with RunningStore(data_dir) as store:
        s3 = S3(store)
        assert wrong(s3, ()) == []
        serves_new(s3)
        assert store.stop() == 0


def test_in_both_copies_of_a_volume_header(data_dir: Path) -> None:
    volume = one(data_dir, "volumes/*.bulk")
    flip(volume, 60)
    flip(volume, 4096 + 60)
    refused = run_command("--port", "0", "--data-dir", str(data_dir))
    assert refused.returncode == 1 and "verify --repair" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
    report = verify(data_dir, "--repair")
    assert "quarantine" in report.stdout, report.stdout
    larges = {key for key in BODIES if key.startswith("large")}
    with RunningStore(data_dir) as store:
        s3 = S3(store)
        assert set(wrong(s3, larges)) == larges
        serves_new(s3)
        assert store.stop() == 0


# --- the index: its bad spans are put right from the volumes


def in_table(place: Callable[[int], int]) -> Damage:
    def damage(data_dir: Path) -> None:
        path = max(data_dir.glob("index/*.table"), key=lambda p: p.stat().st_size)
        flip(path, place(path.stat().st_size))

    return damage


INDEX: dict[str, Damage] = {
    "header of a table": in_table(lambda size: 20),
    "first block of a table": in_table(lambda size: 300),
    "middle block of a table": in_table(lambda size: size // 2),
    "end of a table": in_table(lambda size: size - 400),
    "footer of a table": in_table(lambda size: size - 20),
    "manifest": lambda d: flip(one(d, "index/MANIFEST-*"), 512 + 100),
    "header of the manifest": lambda d: flip(one(d, "index/MANIFEST-*"), 20),
    "CURRENT": lambda d: flip(d / "index" / "CURRENT", 20),
}


def heals(s3: S3) -> None:
    """Every object is there in the end; never is a wrong one."""
    end = time.monotonic() + PATIENCE_S
    while wrong(s3, BODIES):
        assert time.monotonic() < end, "the index is not put right"
        time.sleep(0.1)
    serves_new(s3)


@pytest.mark.parametrize("what", list(INDEX))
@pytest.mark.parametrize("repair", [False, True], ids=["started", "repaired"])
def test_in_the_index(data_dir: Path, what: str, repair: bool) -> None:
    INDEX[what](data_dir)
    report = verify(data_dir)
    assert report.returncode == 1 and "index" in report.stdout, report.stdout + report.stderr
    if repair:
        report = verify(data_dir, "--repair")
        assert "repaired: " in report.stdout, report.stdout
    with RunningStore(data_dir) as store:
        heals(S3(store))
        assert store.stop() == 0
    with RunningStore(data_dir) as store:
        assert wrong(S3(store), ()) == []
        assert store.stop() == 0
    report = verify(data_dir)
    assert report.returncode == 0, report.stdout


@pytest.mark.parametrize("what", ["the directory", "a table", "the manifest", "CURRENT"])
def test_a_missing_part_of_the_index_is_rebuilt(data_dir: Path, what: str) -> None:
    if what == "the directory":
        shutil.rmtree(data_dir / "index")
    else:
        pattern = {"a table": "*.table", "the manifest": "MANIFEST-*", "CURRENT": "CURRENT"}[what]
        for path in (data_dir / "index").glob(pattern):
            path.unlink()
    assert verify(data_dir).returncode == 1
    with RunningStore(data_dir) as store:
        heals(S3(store))
        assert store.stop() == 0
    report = verify(data_dir)
    assert report.returncode == 0, report.stdout


# --- keys


@pytest.mark.parametrize("copy", [0, 1])
def test_in_one_copy_of_the_node_keys(data_dir: Path, copy: int) -> None:
    flip(data_dir / "node.keys", copy * 4096 + 50)
    with RunningStore(data_dir) as store:
        s3 = S3(store)
        assert wrong(s3, ()) == []
        serves_new(s3)
        assert store.stop() == 0


@pytest.mark.parametrize("name", ["node.keys", "master.key"])
def test_keys_that_are_lost_leave_everything_as_it_is(data_dir: Path, name: str) -> None:
    path = data_dir / name
    for offset in range(10, path.stat().st_size, 40):
        flip(path, offset)
    before = {p: p.read_bytes() for p in data_dir.rglob("*") if p.is_file() and p.name != "lock"}
    for command in (("--port", "0"), ("verify",), ("verify", "--repair")):
        done = run_command(*command, "--data-dir", str(data_dir))
        assert done.returncode == 1 and name in done.stderr, done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
    after = {p: p.read_bytes() for p in data_dir.rglob("*") if p.is_file() and p.name != "lock"}
    assert after == before
