"""Fields are read back as they were laid out, and nothing is read past the end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from o3storage.runtime.fields import FieldReader

NUMBERS = {"u8": 1, "u16": 2, "u32": 4, "u64": 8}
LENGTHS = {"bytes8": 1, "bytes16": 2, "bytes32": 4}

fields = st.lists(
    st.one_of(
        *(
            st.tuples(st.just(name), st.integers(0, 256**size - 1))
            for name, size in NUMBERS.items()
        ),
        *(st.tuples(st.just(name), st.binary(max_size=255)) for name in LENGTHS),
        st.tuples(st.just("text"), st.text(max_size=60)),
    )
)


def laid_out(name, value) -> bytes:
    if name in NUMBERS:
        return value.to_bytes(NUMBERS[name], "big")
    data = value.encode() if name == "text" else value
    return len(data).to_bytes(LENGTHS.get(name, 1), "big") + data


@given(fields, st.integers(0, 5))
def test_what_was_laid_out_is_read(items, before) -> None:
    data = bytes(before) + b"".join(laid_out(*item) for item in items)
    reader = FieldReader(data, before)
    for name, value in items:
        assert not reader.done
        assert getattr(reader, name)() == value
    assert reader.done
    reader.end()


@given(fields.filter(bool))
def test_what_is_cut_short_or_left_over_is_refused(items) -> None:
    data = b"".join(laid_out(*item) for item in items)
    for cut in range(len(data)):
        reader = FieldReader(data[:cut])
        with pytest.raises(ValueError, match="record ends at byte"):
            for name, _ in items:
                try:
                    getattr(reader, name)()
                except UnicodeDecodeError:
                    raise AssertionError("a text that was cut was decoded") from None
    reader = FieldReader(data + b"\0")
    reader.take(len(data))
    with pytest.raises(ValueError, match="1 bytes after the record's end"):
        reader.end()
