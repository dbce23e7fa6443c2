"""The XML reader and the escapes of the writers."""

from __future__ import annotations

import contextlib
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from o3storage.s3._errors import CODES, S3Error, error_document
from o3storage.s3._times import iso_time, iso_times
from o3storage.s3._xml import (
    MAX_DEPTH,
    MAX_ELEMENTS,
    Element,
    XmlError,
    XmlReader,
    escape,
    escape_bytes,
    parse,
    plain_all,
    url_encode,
)

printable = st.text(
    st.characters(blacklist_categories=("Cs", "Cc"), blacklist_characters="\ufffe\uffff"),
    max_size=40,
)
names = st.from_regex(r"[A-Za-z][A-Za-z0-9]{0,8}", fullmatch=True)


@st.composite
def trees(draw: st.DrawFn, depth: int = 4) -> ElementTree.Element:
    element = ElementTree.Element(draw(names))
    children = draw(st.integers(0, 3)) if depth else 0
    if not children:
        element.text = draw(printable)
    for _ in range(children):
        element.append(draw(trees(depth - 1)))
    return element


def same(ours: Element, theirs: ElementTree.Element) -> bool:
    return (
        ours.name == theirs.tag
        and (len(theirs) > 0 or ours.text == (theirs.text or ""))
        and len(ours.children) == len(theirs)
        and all(same(a, b) for a, b in zip(ours.children, theirs))
    )


@settings(max_examples=200, deadline=None)
@given(tree=trees(), step=st.integers(1, 50))
def test_reads_what_elementtree_writes_however_it_is_cut(
    tree: ElementTree.Element, step: int
) -> None:
    data = ElementTree.tostring(tree, encoding="utf-8")
    reader = XmlReader()
    for at in range(0, len(data), step):
        reader.feed(data[at : at + step])
    assert same(reader.finish(), tree)


def test_a_namespace_and_a_prefix_leave_the_local_name() -> None:
    for text in (
        b'<Delete xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Quiet>true</Quiet></Delete>',
        b'<s:Delete xmlns:s="urn:x"><s:Quiet>true</s:Quiet></s:Delete>',
    ):
        root = parse(text)
        assert root.name == "Delete"
        assert root.child_text("Quiet") == "true"


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"   ",
        b"<a",
        b"<a></b>",
        b"<a/><b/>",
        b"<a>\xff</a>",
        b"<a>\x00</a>",
        b"<a>&unknown;</a>",
        b"<!DOCTYPE a><a/>",
        b'<!DOCTYPE a [<!ENTITY x "y">]><a>&x;</a>',
        b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><a>&x;</a>',
        b'<!DOCTYPE a SYSTEM "http://127.0.0.1/x.dtd"><a/>',
        b'<!DOCTYPE l [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]><l>&b;</l>',
        b'<?xml-stylesheet href="x"?><a/>',
        b"<a>" * (MAX_DEPTH + 1) + b"</a>" * (MAX_DEPTH + 1),
        b"<a>" + b"<b/>" * MAX_ELEMENTS + b"</a>",
        "<?xml version='1.0' encoding='utf-16'?><a/>".encode("utf-16"),
    ],
    ids=range(17),
)
@pytest.mark.s3(op="*", errors=["MalformedXML"])
def test_documents_that_are_refused(document: bytes) -> None:
    with pytest.raises(XmlError):
        parse(document)


def test_a_document_over_its_limit_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(XmlError, match="larger than 10 bytes"):
        parse(b"<aaaaaaaaa/>", max_bytes=10)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_arbitrary_bytes_raise_nothing_but_xml_errors(data: bytes) -> None:
    with contextlib.suppress(XmlError):
        parse(data)


@settings(max_examples=300, deadline=None)
@given(printable)
def test_escaped_text_reads_back(text: str) -> None:
    document = f"<a>{escape(text)}</a>".encode()
    assert parse(document).text == text
    assert ElementTree.fromstring(document).text == (text or None)
    assert escape_bytes(text.encode()) == escape(text)


@pytest.mark.s3(op="ListObjectsV2")
def test_control_characters_become_references() -> None:
    assert escape("a\x01\r\n\x7f\ufffe") == "a&#x1;&#xd;&#xa;&#x7f;&#xfffe;"
    assert escape_bytes(b"\x1b<") == "&#x1b;&lt;"


@pytest.mark.s3(op="ListObjectsV2", headers=["?encoding-type"])
def test_url_encoding_of_listings() -> None:
    assert url_encode(b"a b+c/d") == "a%20b%2Bc/d"
    assert url_encode("é\x01%".encode()) == "%C3%A9%01%25"
    assert url_encode(b"plain/key-1_2.txt") == "plain/key-1_2.txt"


@pytest.mark.parametrize("code", sorted(CODES))
def test_every_error_code_makes_a_document(code: str) -> None:
    error = S3Error(code, details=(("Extra", "a<b"),))
    document = ElementTree.fromstring(
        error_document(error, resource="/b/k&\x01".replace("\x01", ""), request_id="1", host_id="2")
    )
    assert [child.tag for child in document] == [
        *("Code", "Message", "Extra", "Resource", "RequestId", "HostId"),
    ]
    assert document.findtext("Code") == code
    assert document.findtext("Extra") == "a<b"
    assert document.findtext("Resource") == "/b/k&"
    assert 400 <= error.status < 600


def test_line_ends_in_the_details_of_an_error_stay_readable() -> None:
    error = S3Error("SignatureDoesNotMatch", details=(("StringToSign", "a\nb<\r"),))
    document = error_document(error, resource="/", request_id="1", host_id="2")
    assert b"<StringToSign>a\nb&lt;&#xd;</StringToSign>" in document


@given(st.lists(st.one_of(st.binary(max_size=6), st.text("ab\n&é/ ", max_size=6).map(str.encode))))
def test_many_that_are_plain_are_encoded_as_each(texts: list[bytes]) -> None:
    for encode in (escape_bytes, url_encode):
        each = [encode(text) for text in texts]
        found = plain_all(texts, encode)
        assert found == each or found is None
        if texts and [text.decode("latin-1") for text in texts] == each:
            assert found is not None


@given(st.lists(st.integers(0, 1 << 63)))
def test_many_times_are_written_as_each(times_ns: list[int]) -> None:
    assert iso_times(times_ns) == [iso_time(time_ns) for time_ns in times_ns]
