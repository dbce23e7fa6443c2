"""What a person sees first: the lines on the terminal and the small page at `/`."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from html import escape
from pathlib import Path

PAGE_HEADERS = [
    ("Content-Type", "text/html; charset=utf-8"),
    ("Cache-Control", "no-store"),
    ("X-Content-Type-Options", "nosniff"),
    ("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'"),
]
ENV_ELSEWHERE = "o3storage env --data-dir DIR"
"""On the page, where strangers may read it."""
MAX_LINES = 14
"""The first screen stays on one screen, however small."""


@dataclass(frozen=True, slots=True)
class FirstScreen:
    version: str
    url: str
    health_url: str
    region: str
    data_dir: Path
    state: str
    """`new store` or `opened: N objects, X used, Y free`."""
    command: str
    """How this program is called from here, e.g. `o3storage` or `.venv/bin/o3storage`."""
    default_data_dir: bool
    master_key: str
    credentials_file: Path
    key_id: str | None
    secret: str | None
    """Only on the first start and only for a terminal."""
    token: str | None = None
    """For other nodes to join; only where the secrets are shown."""
    warning: str | None = None

    def env_command(self) -> str:
        words = [self.command, "env"]
        if not self.default_data_dir:
            words += ["--data-dir", str(self.data_dir)]
        return " ".join(shlex.quote(word) for word in words)

    def curl_upload(self) -> str:
        """With curl 7.88 `-T` alone signs an empty body; an unsigned payload is stated instead."""
        return (
            f"curl --aws-sigv4 aws:amz:{self.region}:s3 "
            '--user "$AWS_ACCESS_KEY_ID:$AWS_SECRET_ACCESS_KEY" '
            "-H 'x-amz-content-sha256: UNSIGNED-PAYLOAD' -T README.md "
            f"{self.url}/my-bucket/README.md"
        )

    def lines(self) -> list[str]:
        lines = [
            f"O3Storage {self.version}",
            f"  S3       {self.url}  (region {self.region})",
            f"  data     {self.data_dir}  {self.state}",
            "  safety   writes are synced before they are answered; data is sealed and checksummed",
        ]
        if self.key_id and self.secret:
            lines.append(f"  key id   {self.key_id}")
            lines.append(f"  secret   {self.secret}")
        lines.append(f"  kept in  {self.credentials_file}  (root key, readable by you only)")
        lines.append(f"  back up  {self.master_key}: without it the data is lost")
        lines.append(f'  tools    eval "$({self.env_command()})"  &&  aws s3 mb s3://my-bucket')
        lines.append(f"  upload   {self.curl_upload()}")
        if self.token:
            lines.append(f"  join     o3storage --ip IP --join {self.token}")
        lines.append(f"  health   {self.health_url}")
        if self.warning:
            lines.append(f"  WARNING  {self.warning}")
        lines.append("  stop     Ctrl-C, at any time: what was answered is safe")
        assert len(lines) <= MAX_LINES
        return lines


def size_text(size_bytes: float) -> str:
    """`1536` -> `1.5 KiB`."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size_bytes < 1024:
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.1f} PiB"


def landing_page(url: str, region: str, env_command: str) -> bytes:
    """The page a browser gets at `/` without a signature."""
    commands = [
        f'eval "$({env_command})"',
        "aws s3 mb s3://my-bucket",
        "aws s3 cp FILE s3://my-bucket/",
    ]
    listing = "\n".join(escape(command) for command in commands)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>O3Storage</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:42rem;margin:4rem auto;padding:0 1rem;
color:#1a1f24;background:#fff}}code,pre{{font:14px/1.6 ui-monospace,monospace;background:#f2f4f6;
border-radius:6px}}code{{padding:.1em .3em}}pre{{padding:1rem;overflow:auto}}
@media(prefers-color-scheme:dark){{body{{color:#e6e9ec;background:#14171a}}
code,pre{{background:#20252a}}}}</style></head>
<body><h1>O3Storage is running</h1>
<p>S3 endpoint <code>{escape(url)}</code>, region <code>{escape(region)}</code>.</p>
<p>Next, in a shell on the machine that runs it:</p><pre>{listing}</pre>
<p><a href="/health">Health</a></p></body></html>
""".encode()
