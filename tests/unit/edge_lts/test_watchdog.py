"""When a candidate is ended before it takes the board with it; readings are made up."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_lts.profile import watchdog
from edge_lts.profile.watchdog import STORM_READINGS, Reading, Watchdog

MB = 1 << 20
CALM = Reading(
    at_s=0.0,
    total_bytes=1000 * MB,
    available_bytes=600 * MB,
    rss_bytes=200 * MB,
    swap_bytes=0,
    swap_traffic_bytes=0,
)


def verdicts(*readings: Reading | None) -> list[str | None]:
    """What the watchdog says to each reading after the first, which it takes when it is made."""
    series: Iterator[Reading | None] = iter(readings)
    dog = Watchdog(1, lambda pid: next(series))
    return [dog.verdict() for _ in readings[1:]]


def after(seconds: float, **changes: int) -> Reading:
    return dataclasses.replace(CALM, at_s=seconds, **changes)


def test_a_candidate_that_grows_while_there_is_room_is_left_alone() -> None:
    grown = [after(0.2 * i, rss_bytes=(200 + 50 * i) * MB, available_bytes=(600 - 50 * i) * MB) for i in range(1, 12)]
    assert verdicts(CALM, *grown) == [None] * 11


def test_growing_into_the_last_of_the_memory_ends_it_and_the_numbers_are_said() -> None:
    full, standing = after(0.4, available_bytes=39 * MB, rss_bytes=700 * MB), after(0.6, available_bytes=39 * MB)
    said = verdicts(CALM, after(0.2, rss_bytes=600 * MB), full)
    assert said[0] is None
    assert str(39 * MB) in str(said[1])
    assert str(700 * MB) in str(said[1])
    assert verdicts(full, dataclasses.replace(full, at_s=0.6), standing) == [None, None]  # it grows no more
    out = after(0.6, available_bytes=39 * MB, rss_bytes=650 * MB, swap_bytes=60 * MB)
    assert "grew" in str(verdicts(full, out)[0])  # into swap


def test_what_was_swapped_out_before_it_began_does_not_count_against_it() -> None:
    parent = after(0.0, swap_bytes=150 * MB)
    assert verdicts(parent, after(0.2, swap_bytes=180 * MB)) == [None]
    assert "swapped out" in str(verdicts(parent, after(0.2, swap_bytes=201 * MB))[0])


def test_a_swap_storm_ends_it_only_if_it_lasts() -> None:
    storm = [after(0.2 * i, swap_traffic_bytes=11 * i * MB) for i in range(1, 9)]  # 55 MiB/s of 1000 MiB
    said = verdicts(CALM, *storm)
    assert said[: STORM_READINGS - 1] == [None] * (STORM_READINGS - 1)
    assert "swap" in str(said[STORM_READINGS - 1])
    pause = dataclasses.replace(storm[3], at_s=1.0)
    broken = [dataclasses.replace(r, at_s=r.at_s + 0.2) for r in storm[4:7]]
    assert verdicts(CALM, *storm[:4], pause, *broken) == [None] * 8
    light = [after(0.2 * i, swap_traffic_bytes=9 * i * MB) for i in range(1, 20)]
    assert verdicts(CALM, *light) == [None] * 19


def test_a_kernel_that_says_nothing_ends_nobody() -> None:
    assert verdicts(None, None, CALM, after(0.2, rss_bytes=900 * MB), None, CALM) == [None] * 5


def test_readings_come_from_proc_as_documented(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "meminfo").write_text("MemTotal:  1000 kB\nMemFree:  1 kB\nMemAvailable:  300 kB\nSwapTotal: 5 kB\n")
    (tmp_path / "7/status").write_text("Name:\tx\nVmRSS:\t  120 kB\nRssAnon:\t 1 kB\nVmSwap:\t  8 kB\n")
    (tmp_path / "vmstat").write_text("pgpgin 9\npswpin 3\npswpout 4\npswpin_zero 9\n")
    found = watchdog.read(7, str(tmp_path))
    assert found is not None
    assert (found.total_bytes, found.available_bytes) == (1000 * 1024, 300 * 1024)
    assert (found.rss_bytes, found.swap_bytes) == (120 * 1024, 8 * 1024)
    assert found.swap_traffic_bytes == 7 * watchdog.os.sysconf("SC_PAGE_SIZE")
    (tmp_path / "7/status").write_text("Name:\tgone\n")  # a zombie has no memory
    assert watchdog.read(7, str(tmp_path)) is None
    assert watchdog.read(8, str(tmp_path)) is None


def test_this_machine_can_be_read_in_a_moment() -> None:
    import os
    import time

    if watchdog.read(os.getpid()) is None:
        pytest.skip("needs /proc")
    fastest = float("inf")
    for _ in range(20):
        started = time.perf_counter()
        assert watchdog.read(os.getpid()) is not None
        fastest = min(fastest, time.perf_counter() - started)
    assert fastest < 0.01 * watchdog.INTERVAL_S
