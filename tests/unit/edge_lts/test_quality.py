"""What clocks say of samples, and what a record says of its value. Every clock is injected; nothing sleeps."""

from __future__ import annotations

import os
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edge_lts import quality
from edge_lts.clocks import Clocks
from edge_lts.health import Health
from edge_lts.quality import Gate, Verdict, Watch, judge
from edge_lts.records import NOTES, TAINTS, Protocol
from tests.fake_clocks import MS, FakeClocks, FakeSensors

NAME = "decode_latency_s"


def watch(
    wall_ms: float = 10.0,
    *,
    lost_ms: float = 0.0,
    idle_ms: float = 0.0,
    delay_ms: float | None = None,
    voluntary: int = 0,
    involuntary: int = 0,
    faults: int = 0,
) -> Watch:
    delay = None if delay_ms is None else int(delay_ms * MS)
    return Watch(
        int(wall_ms * MS), int(lost_ms * MS), int(idle_ms * MS), delay, voluntary, involuntary, faults, window=0
    )


def test_an_undisturbed_sample_has_no_taint() -> None:
    calm = [watch(), watch(lost_ms=-0.002, idle_ms=0.4), watch(idle_ms=0.3, involuntary=1)]
    assert judge([watch(idle_ms=0.35)] * 4 + calm, 1) == [()] * 7
    assert judge([watch(lost_ms=0.02)] * 3, 0) == [()] * 3


def test_one_timer_tick_is_no_taint_and_a_lost_slice_is() -> None:
    ticks = [watch(2.0, lost_ms=0.05, involuntary=1), watch(2.0, lost_ms=0.09, involuntary=2)]
    assert judge(ticks, 0) == [(), ()]
    assert judge([watch(2.0, lost_ms=0.11, involuntary=1)], 0) == [("contended",)]
    assert judge([watch(100.0, lost_ms=2.9, involuntary=1)], 0) == [()]
    assert judge([watch(100.0, lost_ms=3.1, involuntary=1)], 0) == [("contended",)]


def test_a_preempted_worker_is_seen_although_the_main_thread_ran_on() -> None:
    calm = [watch(5.0, idle_ms=0.1)] * 6
    preempted = watch(9.0, idle_ms=4.2, involuntary=1)
    assert judge([*calm, preempted], 1) == [()] * 6 + [("contended",)]
    # so is one that was put off its core just before
    assert judge([*calm, watch(9.0, idle_ms=4.2)], 1)[-1] == ("contended",)


def test_workers_that_sleep_by_habit_are_not_preempted() -> None:
    """A worker without work sleeps for most of a sample, here 70 to 80 %, and preemptions of others change nothing."""
    habit = [watch(10.0, idle_ms=share, lost_ms=0.5, voluntary=4) for share in (7.0, 7.2, 7.5, 7.8, 8.0)]
    same = watch(10.0, idle_ms=7.6, lost_ms=0.5, voluntary=4, involuntary=1)
    worse = watch(14.0, idle_ms=14.0, lost_ms=2.0, voluntary=4, involuntary=2)
    assert judge([*habit, same, worse], 1) == [()] * 6 + [("contended",)]


def test_where_delays_are_kept_they_decide() -> None:
    idle = watch(10.0, lost_ms=3.0, idle_ms=9.0, voluntary=9, involuntary=3, delay_ms=0.05)
    assert judge([idle], 1) == [()]
    assert judge([watch(10.0, delay_ms=0.4)], 3) == [("contended",)]


def test_frozen_is_when_nobody_ran_for_long_and_nobody_took_the_core() -> None:
    calm = [watch()] * 5
    assert judge([*calm, watch(80.0, lost_ms=70.0, idle_ms=70.0, voluntary=2)], 1)[-1] == ("frozen",)
    assert judge([watch(80.0, lost_ms=70.0, delay_ms=0.0, voluntary=1)], 0) == [("frozen",)]
    # a competitor takes as long in many slices
    assert judge([*calm, watch(140.0, lost_ms=70.0, idle_ms=70.0, involuntary=33)], 1)[-1] == ("contended",)
    assert judge([watch(140.0, lost_ms=70.0, delay_ms=69.0, involuntary=3)], 0) == [("contended",)]
    # the main thread waits for a worker that computes
    assert "frozen" not in judge([*calm, watch(80.0, lost_ms=70.0, idle_ms=1.0, voluntary=1)], 1)[-1]


def test_when_all_samples_are_disturbed_they_do_not_pass_for_the_usual() -> None:
    found = judge([watch(20.0, lost_ms=9.0 + i, involuntary=4, idle_ms=1.0) for i in range(6)], 0)
    assert found == [("contended",)] * 6
    rng = random.Random(1)
    busy = [watch(20.0, lost_ms=rng.uniform(0, 9), idle_ms=rng.uniform(0, 9), involuntary=3) for _ in range(30)]
    assert sum(map(bool, judge([watch(20.0, involuntary=1), *busy], 1))) >= 27


def series() -> Any:
    return SimpleNamespace(name="decode", samples_s=[], watches=[])


def take(gate: Gate, into: Any, wall_ms: float = 10.0, lost_ms: float = 0.0, **more: int) -> None:
    before = gate.mark()
    gate.clocks.spend(wall_ms, lost_ms, **more)  # type: ignore[attr-defined]
    into.watches.append(gate.watch(before))
    into.samples_s.append(wall_ms / 1e3)


def gate_of(threads: int = 1, sensors: Any = None, heat: Any = "burst") -> Gate:
    gate = Gate(Protocol(heat=heat), threads, sensors, FakeClocks())  # type: ignore[arg-type]
    gate.begin()
    return gate


def conclude(gate: Gate, taken: Any, cap: int = 40, *, swapped: bool = False) -> tuple[Verdict, tuple[str, ...]]:
    gate.settle()
    verdict = gate.verdict(taken, cap)
    return verdict, gate.flags({NAME: verdict}, {NAME: taken.samples_s}, swapped=swapped)


@pytest.mark.parametrize("threads", [1, 2])
def test_half_the_samples_disturbed_gives_a_clean_value_and_no_flag(threads: int) -> None:
    gate, taken = gate_of(threads), series()
    for index in range(40):
        if index % 2:
            take(gate, taken, 20.0, 9.0, involuntary=2)
        else:
            take(gate, taken)
    verdict, flags = conclude(gate, taken)
    assert flags == ()
    assert verdict.kept == list(range(0, 40, 2))
    assert gate.summary({NAME: verdict})["taints"] == {"contended": 20}
    assert gate.summary({NAME: verdict})["tainted_samples"] == {NAME: list(range(1, 40, 2))}


def test_interference_throughout_raises_the_flag_and_keeps_everything() -> None:
    gate, taken = gate_of(), series()
    for _ in range(20):
        take(gate, taken, 20.0, 9.0, involuntary=2)
    verdict, flags = conclude(gate, taken)
    assert verdict.is_fallback
    assert verdict.kept == list(range(20))
    assert flags == ("contended",)


def test_a_few_clean_samples_among_many_disturbed_are_used_but_flagged() -> None:
    gate, taken = gate_of(), series()
    for index in range(40):
        if index % 5:
            take(gate, taken, 20.0, 9.0, involuntary=2)
        else:
            take(gate, taken)
    verdict, flags = conclude(gate, taken)
    assert not verdict.is_fallback
    assert len(verdict.kept) == 8
    assert flags == ("contended",)


def test_fewer_samples_than_six_are_enough_where_fewer_were_asked_for() -> None:
    gate, taken = gate_of(), series()
    for _ in range(3):
        take(gate, taken)
    take(gate, taken, 20.0, 9.0, involuntary=2)
    assert conclude(gate, taken, cap=3)[0].kept == [0, 1, 2]
    assert conclude(gate, taken, cap=4)[0].is_fallback


def test_only_scatter_of_what_is_kept_is_noise() -> None:
    gate, taken = gate_of(), series()
    for index in range(20):
        take(gate, taken, 10.0 * (1 + index % 3))
    assert conclude(gate, taken)[1] == ("noisy",)
    gate, taken = gate_of(), series()
    for index in range(20):
        take(gate, taken, 10.0 + index % 3, 0.0)
        take(gate, taken, 30.0 + index, 19.0, involuntary=1)
    assert conclude(gate, taken)[1] == ()


def machine(gate: Gate, **changes: Any) -> None:
    clocks: Any = gate.clocks
    clocks.machine = clocks.machine._replace(**changes)


def test_steal_taints_the_samples_since_the_last_reading() -> None:
    gate, taken = gate_of(), series()
    for _ in range(10):
        take(gate, taken)
    machine(gate, ticks=20, steal_ticks=2)
    gate.settle()
    for _ in range(10):
        take(gate, taken)
    machine(gate, ticks=40, steal_ticks=3)  # one tick is what a counter cannot tell from none
    verdict, flags = conclude(gate, taken)
    assert [bool(taints) for taints in verdict.taints] == [True] * 10 + [False] * 10
    assert verdict.taints[0] == ("stolen",)
    assert flags == ()
    assert gate.summary({NAME: verdict})["steal_share"] == 3 / 40


def test_a_little_steal_is_a_condition() -> None:
    gate, taken = gate_of(), series()
    for _ in range(10):
        take(gate, taken)
    machine(gate, ticks=1000, steal_ticks=29)
    verdict, _ = conclude(gate, taken)
    assert verdict.n_tainted == 0


def test_major_faults_are_swapping_where_pages_came_from_swap() -> None:
    gate, taken = gate_of(), series()
    for _ in range(8):
        take(gate, taken, major_faults=3)
    machine(gate, swap_ins=30)
    verdict, flags = conclude(gate, taken)
    assert set(verdict.taints) == {("swapped",)}
    assert flags == ("swapped",)
    summary = gate.summary({NAME: verdict})
    assert (summary["swap_ins"], summary["major_faults"]) == (30, 24)
    gate, taken = gate_of(), series()
    for _ in range(8):
        take(gate, taken, major_faults=1)
    assert conclude(gate, taken)[1] == ("memory_pressure",)
    gate, taken = gate_of(), series()
    take(gate, taken)
    assert conclude(gate, taken, cap=1, swapped=True)[1] == ("swapped",)


def test_memory_pressure_of_the_machine_covers_the_whole_value() -> None:
    gate, taken = gate_of(), series()
    for _ in range(400):
        take(gate, taken)
    machine(gate, memory_pressure_s=0.19, cpu_pressure_s=1.0)
    verdict, flags = conclude(gate, taken)
    assert flags == ()
    assert gate.summary({NAME: verdict})["cpu_pressure_share"] == pytest.approx(0.25)
    machine(gate, memory_pressure_s=0.21)
    assert conclude(gate, taken)[1] == ("memory_pressure",)


def test_what_a_kernel_does_not_keep_is_none_and_no_taint() -> None:
    gate, taken = gate_of(), series()
    machine(gate, ticks=None, swap_ins=None, cpu_pressure_s=None, memory_pressure_s=None, load_1min=None)
    for _ in range(8):
        take(gate, taken)
    verdict, flags = conclude(gate, taken)
    assert flags == ()
    summary = gate.summary({NAME: verdict})
    for name in (
        "steal_share",
        "others_share",
        "cpu_pressure_share",
        "memory_pressure_share",
        "swap_ins",
        "load_1min",
    ):
        assert summary[name] is None
    assert gate.health() is None


OK = Health(temperature_c=50.0, frequency_hz=1_500_000_000, throttle_now=0, throttle_since_boot=0)
HOT = Health(temperature_c=82.0, frequency_hz=1_000_000_000, throttle_now=4, throttle_since_boot=4)
COOL = Health(temperature_c=70.0, frequency_hz=1_500_000_000, throttle_now=0, throttle_since_boot=4)


def test_throttling_in_the_middle_taints_the_samples_around_it() -> None:
    gate, taken = gate_of(sensors=FakeSensors([OK, OK, HOT, COOL, COOL])), series()
    for _ in range(4):
        for _ in range(25):
            take(gate, taken, 10.0)
    assert len(gate.readings) == 5  # one at the start, one for each quarter of a second
    verdict, flags = conclude(gate, taken)
    tainted = [index for index, taints in enumerate(verdict.taints) if "throttled" in taints]
    assert tainted == list(range(25, 75))  # between a good reading and the bad one, and until the next good one
    assert flags == ()
    health = gate.health()
    assert health is not None
    assert health["throttle"] == {"now": 4, "before": 0, "after": 4, "source": "sysfs"}
    assert health["temperature_c"]["max"] == 82.0


def test_a_clock_that_falls_taints_and_one_that_rises_at_first_does_not() -> None:
    slow, fast = Health(frequency_hz=600_000_000), Health(frequency_hz=1_500_000_000)
    gate, taken = gate_of(sensors=FakeSensors([slow, fast, fast, slow, fast])), series()
    for _ in range(100):
        take(gate, taken, 10.0)
    verdict = gate.verdict(taken, 40)
    assert verdict.taints[0] == verdict.taints[49] == ()
    assert verdict.taints[50] == ("slowed_clock",)


def test_throttled_throughout_is_a_flag_in_a_burst_and_the_condition_when_sustained() -> None:
    for heat, expected in (("burst", ("throttled",)), ("sustained", ())):
        hot = Health(frequency_hz=1_000_000_000, throttle_now=4, throttle_since_boot=4)
        gate, taken = gate_of(sensors=FakeSensors([hot]), heat=heat), series()
        for _ in range(60):
            take(gate, taken, 10.0)
        assert conclude(gate, taken)[1] == expected


def test_pauses_grow_while_disturbed_and_end() -> None:
    gate = gate_of()
    clocks: Any = gate.clocks
    assert not gate.pause(False)
    for _ in range(3):
        assert gate.pause(True)
    gate.pause(False)
    gate.pause(True)
    assert clocks.slept_s == [0.005, 0.010, 0.020, 0.005]
    for _ in range(100):
        gate.pause(True)
    assert not gate.pause(True)
    assert sum(clocks.slept_s) == pytest.approx(quality.MAX_PAUSE_S)


def test_the_words_are_the_records_words() -> None:
    assert not set(TAINTS) & set(NOTES)
    assert len(set(TAINTS)) == 9


SCHEDSTAT = {"1": "500 700 3\n", "2": "400 50 1\n"}


def proc(tmp_path: Path, delays: dict[str, str]) -> Path:
    for tid, text in delays.items():
        folder = tmp_path / "self" / "task" / (str(os.getpid()) if tid == "1" else tid)
        folder.mkdir(parents=True)
        (folder / "schedstat").write_text(text)
    (tmp_path / "stat").write_text("cpu  100 0 50 800 20 5 5 20 0 0\ncpu0 1 2\n")
    (tmp_path / "vmstat").write_text("pgfault 7\npswpin 12\npswpout 3\n")
    (tmp_path / "pressure").mkdir()
    (tmp_path / "pressure" / "memory").write_text("some avg10=0.00 total=2500000\nfull avg10=0.00 total=1\n")
    return tmp_path


def test_counters_are_read_from_the_kernels_files(tmp_path: Path) -> None:
    clocks = Clocks(str(proc(tmp_path, SCHEDSTAT)))
    found = clocks.system()
    assert (found.ticks, found.idle_ticks, found.steal_ticks) == (1000, 820, 20)
    assert found.swap_ins == 12
    assert found.memory_pressure_s == 2.5
    assert found.cpu_pressure_s is None
    clocks.find_workers(1)
    assert clocks.mark().delay_ns == 700
    clocks.close()
    clocks.close()
    assert clocks.mark().delay_ns is None


@pytest.mark.parametrize("text", ["500 0 1\n", "", "none\n"])
def test_a_kernel_that_keeps_no_delays_says_none(tmp_path: Path, text: str) -> None:
    clocks = Clocks(str(proc(tmp_path, {"1": text})))
    clocks.find_workers(1)
    assert clocks.mark().delay_ns is None


def test_nothing_in_proc_is_nothing_known(tmp_path: Path) -> None:
    clocks = Clocks(str(tmp_path / "missing"))
    found = clocks.system()
    assert (found.ticks, found.swap_ins, found.cpu_pressure_s) == (None, None, None)
    assert clocks.find_workers(2) == 1  # of which only the process's clock speaks
    first, second = clocks.mark(), clocks.mark()
    assert second.wall_ns > first.wall_ns
    assert second.main_ns >= first.main_ns
