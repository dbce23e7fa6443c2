"""Times as S3 writes and reads them. UNIX nanoseconds inside, text outside."""

from __future__ import annotations

import re
from calendar import monthrange, timegm
from collections.abc import Sequence
from time import gmtime
from typing import Final

_DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS: Final = (
    *("Jan", "Feb", "Mar", "Apr", "May", "Jun"),
    *("Jul", "Aug", "Sep", "Oct", "Nov", "Dec"),
)
_MONTH_NUMBER: Final = {name.lower(): number for number, name in enumerate(_MONTHS, 1)}

_IMF: Final = re.compile(r"[A-Za-z]{3}, (\d{2}) ([A-Za-z]{3}) (\d{4}) (\d\d):(\d\d):(\d\d) GMT\Z")
_RFC850: Final = re.compile(
    r"[A-Za-z]{6,9}, (\d{2})-([A-Za-z]{3})-(\d{2}) (\d\d):(\d\d):(\d\d) GMT\Z"
)
_ASCTIME: Final = re.compile(r"[A-Za-z]{3} ([A-Za-z]{3}) ([ \d]\d) (\d\d):(\d\d):(\d\d) (\d{4})\Z")
_ISO: Final = re.compile(r"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(?:\.\d{1,9})?Z\Z")
_BASIC: Final = re.compile(r"(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)Z\Z")

SECOND_NS: Final = 1_000_000_000
_CACHED: Final = 256
MILLISECONDS: Final = tuple(f"{ms:03d}Z" for ms in range(1000))
"""What follows `Seconds` in an `iso_time`."""

_http_dates: dict[int, str] = {}
_iso_seconds: dict[int, str] = {}


def parse_http_date(text: str) -> int | None:
    """UNIX seconds of an HTTP date in any of its three forms (RFC 9110, 5.6.7), None for others."""
    if found := _IMF.match(text):
        day, month, year, hour, minute, second = found.groups()
    elif found := _RFC850.match(text):
        day, month, year, hour, minute, second = found.groups()
        # Two digits: the nearest such year that is not far in the future.
        year = str(int(year) + (2000 if int(year) < 70 else 1900))
    elif found := _ASCTIME.match(text):
        month, day, hour, minute, second, year = found.groups()
    else:
        return None
    return _seconds(int(year), _MONTH_NUMBER.get(month.lower(), 0), int(day), hour, minute, second)


def parse_iso(text: str) -> int | None:
    """UNIX seconds of an ISO 8601 UTC time (fractions cut), None for anything else."""
    found = _ISO.match(text)
    if found is None:
        return None
    year, month, day, hour, minute, second = found.groups()
    return _seconds(int(year), int(month), int(day), hour, minute, second)


def parse_amz_date(text: str) -> int | None:
    """UNIX seconds of YYYYMMDDTHHMMSSZ, None for anything else."""
    found = _BASIC.match(text)
    if found is None:
        return None
    year, month, day, hour, minute, second = found.groups()
    return _seconds(int(year), int(month), int(day), hour, minute, second)


def amz_date(unix_s: int) -> str:
    """YYYYMMDDTHHMMSSZ."""
    year, month, day, hour, minute, second = gmtime(unix_s)[:6]
    return f"{year:04d}{month:02d}{day:02d}T{hour:02d}{minute:02d}{second:02d}Z"


def http_date(time_ns: int) -> str:
    """The IMF-fixdate of a time, whole seconds."""
    unix_s = time_ns // SECOND_NS
    text = _http_dates.get(unix_s)
    if text is None:
        year, month, day, hour, minute, second, weekday = gmtime(unix_s)[:7]
        text = (
            f"{_DAYS[weekday]}, {day:02d} {_MONTHS[month - 1]} {year:04d} "
            f"{hour:02d}:{minute:02d}:{second:02d} GMT"
        )
        if len(_http_dates) >= _CACHED:
            _http_dates.clear()
        _http_dates[unix_s] = text
    return text


def iso_time(time_ns: int) -> str:
    """YYYY-MM-DDTHH:MM:SS.mmmZ. Listings show a version's Last-Modified cut to milliseconds."""
    unix_s, rest_ns = divmod(time_ns, SECOND_NS)
    text = _iso_seconds.get(unix_s)
    if text is None:
        year, month, day, hour, minute, second = gmtime(unix_s)[:6]
        text = f"{year:04d}-{month:02d}-{day:02d}T{hour:02d}:{minute:02d}:{second:02d}."
        if len(_iso_seconds) >= _CACHED:
            _iso_seconds.clear()
        _iso_seconds[unix_s] = text
    return f"{text}{rest_ns // 1_000_000:03d}Z"


def iso_times(times_ns: Sequence[int]) -> list[str]:
    """`iso_time` of each, for a page of a listing: their seconds are looked up only once."""
    seconds = Seconds()
    return [
        seconds[time_ns // SECOND_NS] + MILLISECONDS[time_ns // 1_000_000 % 1000]
        for time_ns in times_ns
    ]


class Seconds(dict[int, str]):
    """UNIX seconds as text, up to the fraction; what is not there yet is made."""

    def __missing__(self, unix_s: int) -> str:
        text = self[unix_s] = iso_time(unix_s * SECOND_NS)[:20]
        return text


def iso_seconds(unix_s: int) -> str:
    """YYYY-MM-DDTHH:MM:SSZ."""
    return f"{iso_time(unix_s * SECOND_NS)[:19]}Z"


def _seconds(year: int, month: int, day: int, hour: str, minute: str, second: str) -> int | None:  # noqa: PLR0917
    if not (year >= 1 and 1 <= month <= 12 and 1 <= day <= monthrange(year, month)[1]):
        return None
    if int(hour) > 23 or int(minute) > 59 or int(second) > 60:
        return None
    return timegm((year, month, day, int(hour), int(minute), int(second)))
