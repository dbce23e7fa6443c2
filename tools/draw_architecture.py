"""Draws docs/architecture.svg: python tools/draw_architecture.py

Left: the floors of the house, imports going down only. Right: where the bytes of a PUT lie, step by
step, and the way back of a GET. The names are those of docs/architecture.md.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

TARGET = Path(__file__).resolve().parent.parent / "docs" / "architecture.svg"
WIDTH, HEIGHT = 1210, 800
ROW, TOP = 56, 74

ROOMS = [
    ("cli", "parse, call, print"),
    ("server", "configuration -> one running node; health, metrics, admin"),
    ("console", "empty today"),
    ("s3", "signatures, XML, headers, errors, operations"),
    ("http", "HTTP/1.1 and TLS; bodies in blocks; limits; deadlines"),
    ("catalog", "buckets, versions, uploads, keys: pure commands, queries"),
    ("cluster", "ranges, replicas, members, body streams, repair"),
    ("raft", "consensus core without I/O"),
    ("storage", "volumes, frames, index, compaction, scrub"),
    ("crypto", "keys, sealing, node identity"),
    ("runtime", "disk, jobs, clock, entropy; log, metrics"),
]
PURE = {"catalog", "raft"}

STYLE = """
 .bg{fill:#ffffff} text{font:13px system-ui,-apple-system,'DejaVu Sans',sans-serif;fill:#1b2127}
 .h{font-size:15px;font-weight:600} .n{font-weight:600;font-size:14px}
 .s{fill:#4c5761;font-size:12px}
 .room{fill:#f1f4f7;stroke:#8b98a5} .pure{fill:#e6f3ea;stroke:#5b9a6f}
 .mem{fill:#eef2fb;stroke:#7089c4} .disk{fill:#fdf1df;stroke:#b98a35}
 .put{stroke:#2f5fb3;stroke-width:2;fill:none} .get{stroke:#2d8659;stroke-width:2;fill:none}
 .puth{fill:#2f5fb3} .geth{fill:#2d8659} .p{fill:#2f5fb3} .g{fill:#2d8659}
 .sync{fill:#a1560a;font-weight:600}
 @media (prefers-color-scheme:dark){
 .bg{fill:#15191d} text{fill:#e5e9ec} .s{fill:#a7b2bc} .room{fill:#20262c;stroke:#66727d}
 .pure{fill:#1c2e23;stroke:#5b9a6f} .mem{fill:#1e2639;stroke:#6d86c0}
 .disk{fill:#33281a;stroke:#b98a35}
 .put{stroke:#7fa6ee} .get{stroke:#62c08e} .puth{fill:#7fa6ee} .geth{fill:#62c08e}
 .p{fill:#9dbcf5} .g{fill:#7fd3a6} .sync{fill:#f0b35c}}
"""


def text(x: float, y: float, words: str, style: str = "", anchor: str = "start") -> str:
    return f'<text x="{x}" y="{y}" class="{style}" text-anchor="{anchor}">{escape(words)}</text>'


def box(x: float, y: float, width: float, height: float, style: str) -> str:
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="6" class="{style}"/>'


def arrow(points: list[tuple[float, float]], style: str) -> str:
    path = "M" + " L".join(f"{x} {y}" for x, y in points)
    return f'<path d="{path}" class="{style}" marker-end="url(#{style})"/>'


def block(x: float, y: float, width: float, style: str, name: str, *lines: str) -> list[str]:
    height = 26 + 17 * len(lines)
    out = [box(x, y, width, height, style), text(x + 12, y + 19, name, "n")]
    out += [text(x + 12, y + 37 + 17 * i, line, "s") for i, line in enumerate(lines)]
    return out


def draw() -> str:
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        'aria-label="The rooms of O3Storage and the way of a PUT and of a GET">',
        f"<style>{STYLE}</style><defs>",
        *(
            f'<marker id="{name}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" '
            f'markerHeight="7" orient="auto"><path d="M0 0L10 5L0 10z" class="{name}h"/></marker>'
            for name in ("put", "get")
        ),
        "</defs>",
        box(0, 0, WIDTH, HEIGHT, "bg"),
        text(24, 34, "The rooms: imports go down only", "h"),
        text(24, 54, "green: pure, no clock, no disk, no randomness", "s"),
        text(560, 34, "Where the bytes of a PUT lie, and the way back", "h"),
    ]
    for number, (name, says) in enumerate(ROOMS):
        y = TOP + number * ROW
        out.append(box(24, y, 440, ROW - 10, "pure" if name in PURE else "room"))
        out.append(text(38, y + 20, name, "n"))
        out.append(text(38, y + 37, says, "s"))
    y = TOP + len(ROOMS) * ROW
    out += [
        box(24, y, 440, ROW - 10, "room"),
        text(38, y + 20, "native/ (Rust): o3storage._native", "n"),
        text(38, y + 37, "digests, sealing, TLS, job pool, index runs; no logic of the store", "s"),
        text(24, y + 72, "simulation/ may import all; only tests and cli import it.", "s"),
    ]
    x, width = 640, 420
    out += block(x, 74, width, "mem", "client", "signed request, body")
    out += block(
        x, 150, width, "mem", "http: one block, 16 KiB grown to 256 KiB",
        "plaintext; nothing on disk",
    )  # fmt: skip
    out += block(
        x, 226, width, "mem", "cluster: sealed frame",
        "digested and sealed in one native call, by the stream's own key",
        "body checked against all that the client promised",
    )  # fmt: skip
    out += block(
        x, 319, width, "mem", "raft + log queue: the entry that names the stream",
        "all proposals of one turn of the loop are one append",
    )  # fmt: skip
    out += block(
        x, 395, width, "disk", "volumes/N.log: one batch",
        "entry and frame (up to 32 KiB) beside it",
    )  # fmt: skip
    out.append(text(x + 12, 466, "ONE pwritev + fdatasync, shared by all who wait", "sync"))
    out += block(
        x, 560, width, "mem", "index memtable: version row, placement",
        "applied after the sync; outcome record rides in a later batch",
    )  # fmt: skip
    out += block(
        x, 640, width, "disk", "index/*.table, MANIFEST",
        "at a flush; can be rebuilt from the volumes alone",
    )  # fmt: skip
    out += block(
        x, 482, width, "disk", "volumes/N.bulk: frames of larger bodies",
        "before the entry: open row, direct writes, a sync, placement",
    )  # fmt: skip
    for low, high in ((117, 150), (193, 226), (286, 319), (362, 395)):
        out.append(arrow([(x + 210, low), (x + 210, high)], "put"))
    out.append(arrow([(x, 256), (x - 40, 256), (x - 40, 504), (x, 504)], "put"))
    out.append(text(x - 48, 384, "over 32 KiB", "p", "end"))
    out.append(arrow([(x + 300, 603), (x + 300, 640)], "put"))
    out.append(arrow([(x, 417), (x - 22, 417), (x - 22, 582), (x, 582)], "put"))
    out.append(text(x - 48, 586, "committed,", "p", "end"))
    out.append(text(x - 48, 602, "applied: 200 OK", "p", "end"))
    right = x + width
    out.append(arrow([(right, 582), (right + 40, 582), (right + 40, 504), (right, 504)], "get"))
    out.append(arrow([(right + 40, 504), (right + 40, 417), (right, 417)], "get"))
    out.append(arrow([(right, 495), (right + 22, 495), (right + 22, 96), (right, 96)], "get"))
    out.append(text(right + 48, 560, "GET: row,", "g"))
    out.append(text(right + 48, 576, "placement", "g"))
    out.append(text(right + 32, 226, "BLAKE3 and", "g"))
    out.append(text(right + 32, 242, "seal checked", "g"))
    out.append(text(right + 32, 258, "before a byte", "g"))
    out.append(text(right + 32, 274, "is sent", "g"))
    out += [
        box(x, 712, 14, 14, "mem"), text(x + 22, 724, "in memory", "s"),
        box(x + 110, 712, 14, 14, "disk"), text(x + 132, 724, "on disk", "s"),
        text(x + 220, 724, "blue: PUT", "p"), text(x + 310, 724, "green: GET", "g"),
        "</svg>",
    ]  # fmt: skip
    return "\n".join(out) + "\n"


if __name__ == "__main__":
    TARGET.write_text(draw())
