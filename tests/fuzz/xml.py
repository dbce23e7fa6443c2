"""Fuzz the XML reader with well-formed and damaged documents, fed in random pieces.

    python -m tests.fuzz.xml [--seconds 60] [--seed 1]

Only XmlError may come out. A document that this file wrote must be read as it was meant. What is
accepted after damage must be what a reader without limits and namespaces makes of it; feeding it in
pieces changes nothing.
"""

from __future__ import annotations

import random
import sys
from xml.etree import ElementTree
from xml.parsers import expat

from o3storage.s3._xml import MAX_DEPTH, Element, XmlError, XmlReader, escape
from tests.fuzz._campaign import campaign, damage

Tree = tuple[str, str, list["Tree"]]

NAMES = ["Delete", "Object", "Key", "Part", "ETag", "a", "Ünï", "x-y", "n:o", "_1"]
TEXTS = ["", "k", "a&b", "<", "]]>", "\r\n", "é", "\U0001f600", "%2F", "x" * 300, "\t", " ", "0"]
TOKENS = [
    b"<!DOCTYPE x [<!ENTITY a 'b'>]>",
    b"<!DOCTYPE x>",
    b"&a;",
    b"&#0;",
    b"&#x1;",
    b"&#xD800;",
    b"&lt;",
    b"<?php x?>",
    b"<!-- c -->",
    b"<![CDATA[",
    b"]]>",
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"\0",
    b"\xc3",
    b"<a>" * 20,
    b"</a>",
    b"<a xmlns='u'/>",
    b"<a b='c' b='d'/>",
    b'<?xml version="1.0" encoding="UTF-16"?>',
]


def random_tree(rng: random.Random, depth: int) -> Tree:
    children = []
    if depth < rng.randrange(1, MAX_DEPTH):
        children = [random_tree(rng, depth + 1) for _ in range(rng.randrange(3))]
    text = "" if children else rng.choice(TEXTS)
    return rng.choice(NAMES[:8]), text, children


def write(rng: random.Random, tree: Tree) -> str:
    name, text, children = tree
    inner = "".join(write(rng, child) for child in children)
    if rng.randrange(4) == 0 and "]]>" not in text and "\r" not in text:
        body = f"<![CDATA[{text}]]>" if text else ""
    else:
        body = escape(text)
    if not body and not inner and rng.randrange(2):
        return f"<{name}/>"
    space = rng.choice(["", " ", " xmlns='u'"])
    return f"<{name}{space}>{body}{inner}</{name}>"


def as_tree(element: Element) -> Tree:
    return element.name, element.text, [as_tree(child) for child in element.children]


def other_tree(element: ElementTree.Element) -> Tree:
    text = (element.text or "") + "".join(child.tail or "" for child in element)
    return element.tag.rpartition(":")[2], text, [other_tree(child) for child in element]


def read(data: bytes, rng: random.Random | None) -> Tree | None:
    """The document's tree, None if it was refused."""
    reader = XmlReader()
    try:
        at = 0
        while at < len(data):
            size = len(data) if rng is None else rng.randrange(1, 40)
            reader.feed(data[at : at + size])
            at += size
        return as_tree(reader.finish())
    except XmlError:
        return None


def plain(data: bytes) -> Tree:
    """The tree by expat alone. Its own errors leave it: what we accept must be well-formed."""
    builder = ElementTree.TreeBuilder()
    parser = expat.ParserCreate("UTF-8")
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.Parse(data, True)
    return other_tree(builder.close())


def step(rng: random.Random) -> str | None:
    tree = random_tree(rng, 1)
    head = rng.choice(["", '<?xml version="1.0" encoding="UTF-8"?>', "\ufeff", "<!-- c -->"])
    data = (head + write(rng, tree) + rng.choice(["", "\n"])).encode()
    if read(data, rng) != tree:
        return f"{data!r}: not read as it was meant"
    for _ in range(rng.randrange(1, 4)):
        if rng.randrange(3):
            data = damage(rng, data)
        else:
            at = rng.randrange(len(data) + 1)
            data = data[:at] + rng.choice(TOKENS) + data[at:]
    whole, pieces = read(data, None), read(data, rng)
    if whole != pieces:
        return f"{data!r}: in pieces {pieces!r}, whole {whole!r}"
    if whole is None:
        return None
    expected = plain(data)
    return None if whole == expected else f"{data!r}: read as {whole!r}, expected {expected!r}"


def main() -> int:
    return campaign(__doc__, step, "documents")


if __name__ == "__main__":
    sys.exit(main())
