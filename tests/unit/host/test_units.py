"""Durations and sizes: what people write, and what they are told when it is neither."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_lts_host.errors import UsageError
from edge_lts_host.units import duration, parse_bytes, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("3h", 10800),
        ("90m", 5400),
        ("1h30m", 5400),
        ("45s", 45),
        ("10800", 10800),
        ("0.5h", 1800),
        ("2d", 172800),
        ("250ms", 0.25),
        ("1h0m1s", 3601),
        ("20min", 1200),
        (" 5m ", 300),
    ],
)
def test_durations_as_people_write_them(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "h", "3x", "-3h", "0", "0s", "1m1h", "1h1h", "1e3", "nan", "inf", "1 h", "367d", "٣h", "3h!"]
)
def test_what_is_no_duration_is_refused_with_the_name_of_the_flag(text: str) -> None:
    with pytest.raises(UsageError, match=r"^--budget: .*"):
        parse_duration(text, "--budget")


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("512MiB", 512 << 20),
        ("1GB", 10**9),
        ("1GiB", 1 << 30),
        ("400M", 400 << 20),
        ("400MB", 400 * 10**6),
        ("1.5G", 3 << 29),
        ("4kB", 4000),
        ("4KiB", 4096),
        ("4k", 4096),
        ("100", 100),
        ("100B", 100),
        ("2 GiB", 2 << 30),
    ],
)
def test_sizes_as_people_write_them(text: str, n_bytes: int) -> None:
    assert parse_bytes(text) == n_bytes


@pytest.mark.parametrize("text", ["", "MiB", "5XB", "-1M", "0", "0.4", "1e6", "5iB", "5kiB", "9999999T", "5 0M"])
def test_what_is_no_size_is_refused_with_the_name_of_the_flag(text: str) -> None:
    with pytest.raises(UsageError, match=r"^--max-peak-memory: .*"):
        parse_bytes(text, "--max-peak-memory")


def test_the_factory_for_argparse_names_its_flag() -> None:
    assert duration("--poll")("2s") == 2.0
    with pytest.raises(UsageError, match="--poll"):
        duration("--poll")("soon")


@given(st.text(max_size=20))
def test_any_text_is_either_read_or_refused(text: str) -> None:
    for parse in (parse_duration, parse_bytes):
        try:
            assert parse(text, "--flag") > 0
        except UsageError as exc:
            assert str(exc).startswith("--flag: ")


@given(st.integers(0, 99), st.integers(0, 59), st.integers(0, 59))
def test_hours_minutes_and_seconds_add_up(hours: int, minutes: int, seconds: int) -> None:
    total = 3600 * hours + 60 * minutes + seconds
    if total:
        assert parse_duration(f"{hours}h{minutes}m{seconds}s") == total
