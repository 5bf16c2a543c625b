"""Logs of power and energy, and energy per token, on a simulated board; one test takes a real thread and clock."""

import math
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from edge_lts.energy import Meter, MeterError
from edge_lts.job import boot_id
from edge_lts.profile.energy import (
    LOAD_STEPS_S,
    MAX_GAP_S,
    N_PARTS,
    Clock,
    EnergyLog,
    energy_seconds,
    load_step,
    measure_energy,
)

TOKEN_S = 0.013
IDLE_W = 3.0
LOAD_W = 4.25  # above idle
TRUE_J_PER_TOKEN = LOAD_W * TOKEN_S


class Board:
    """Time that passes only when told; power is idle, plus the load's while a step runs."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.cpu_s = 0.0
        self.energy_j = 0.0
        self.is_busy = False
        self.token_s = TOKEN_S
        self.idle_w: Callable[[float], float] = lambda _: IDLE_W
        self.log: SteppedLog | None = None
        self.due_s = math.inf
        self.period_s = math.inf

    def clock(self) -> float:
        return self.now_s

    def cpu_clock(self) -> float:
        return self.cpu_s

    def power_w(self) -> float:
        return self.idle_w(self.now_s) + (LOAD_W if self.is_busy else 0.0)

    def sleep(self, seconds: float) -> None:
        end_s = self.now_s + seconds
        while self.now_s < end_s:
            step_s = min(end_s, max(self.due_s, self.now_s), self.now_s + 0.05) - self.now_s
            self.energy_j += self.power_w() * step_s
            self.now_s += step_s
            if self.log is not None and self.now_s >= self.due_s:
                self.due_s = self.now_s + self.period_s
                self.log.sample()

    def step(self) -> None:
        self.is_busy = True
        self.sleep(self.token_s)
        self.cpu_s += self.token_s
        self.is_busy = False


class SteppedLog(EnergyLog):
    """A log whose samples are taken by the board's time and not by a thread."""

    def __init__(self, board: Board, meter: Meter | None) -> None:
        super().__init__(meter, board.clock)
        self._board, self._is_sampled = board, meter is not None and meter.read_power_w is not None

    def __enter__(self) -> "SteppedLog":
        if self._is_sampled:
            self.sample()
            self._board.log, self._board.period_s = self, self._period_s
            self._board.due_s = self._board.now_s + self._period_s
        return self

    def __exit__(self, *_: object) -> None:
        self._board.log, self._board.due_s = None, math.inf
        if self._is_sampled:
            self.sample()


def wattmeter(board: Board, *, period_s: float = 0.1, hold_s: float = 0.0, until_s: float = math.inf) -> Meter:
    """Shows the board's power; `hold_s` keeps each number that long, `until_s` is when it is pulled out."""
    shown_w, shown_s = 0.0, -math.inf

    def read() -> float:
        nonlocal shown_w, shown_s
        if board.now_s > until_s:
            raise MeterError("power1_input: No such device")
        if board.now_s >= shown_s + hold_s:
            shown_w, shown_s = board.power_w(), board.now_s
        return shown_w

    return Meter(name="simulated", period_s=period_s, read_power_w=read)


def counter(board: Board) -> Meter:
    return Meter(name="counter", scope="package", period_s=0.01, read_energy_j=lambda: board.energy_j)


def constant(power_w: float) -> Meter:
    return Meter(name="simulated", read_power_w=lambda: power_w)


@pytest.fixture
def board() -> Board:
    return Board()


def measure(board: Board, meter: Meter | None, **options: Any) -> tuple[Any, dict[str, Any]]:
    def open_log(meter: Meter | None, _: Clock) -> EnergyLog:
        return SteppedLog(board, meter)

    return measure_energy(
        board.step,
        meter,
        clock=board.clock,
        sleep=board.sleep,
        cpu_clock=board.cpu_clock,
        open_log=open_log,
        **options,
    )


def test_energy_per_token_of_a_power_meter(board: Board) -> None:
    value, about = measure(board, wattmeter(board))
    assert value.median == pytest.approx(TRUE_J_PER_TOKEN, rel=0.01)
    assert value.ci95[0] <= TRUE_J_PER_TOKEN * 1.001
    assert value.ci95[1] >= TRUE_J_PER_TOKEN * 0.999
    assert value.n == N_PARTS
    assert about["window_s"] == pytest.approx(10.0, abs=2 * TOKEN_S)
    assert about["n_tokens"] == pytest.approx(10.0 / TOKEN_S, abs=2)
    assert about["n_readings"] == pytest.approx(100, abs=8)  # a stepped sample comes with the token that it is due in
    assert about["idle_w"] == pytest.approx(IDLE_W)
    assert about["busy_w"] == pytest.approx(IDLE_W + LOAD_W, rel=0.005)
    assert (about["meter"], about["scope"], about["notes"]) == ("simulated", "board-input", [])


def test_energy_per_token_of_a_counter_reads_it_only_at_the_marks(board: Board) -> None:
    n_reads = 0

    def read() -> float:
        nonlocal n_reads
        n_reads += 1
        return board.energy_j

    value, about = measure(board, Meter(name="counter", read_energy_j=read, period_s=0.01))
    assert value.median == pytest.approx(TRUE_J_PER_TOKEN, rel=1e-6)
    assert about["window_s"] == pytest.approx(3.0, abs=2 * TOKEN_S)
    assert n_reads == 2 + 1 + N_PARTS + 2


@pytest.mark.parametrize("period_s", [0.1, 1.0])
def test_meter_that_updates_more_slowly_than_it_is_asked(board: Board, period_s: float) -> None:
    value, about = measure(board, wattmeter(board, period_s=period_s, hold_s=0.9))
    assert value.median == pytest.approx(TRUE_J_PER_TOKEN, rel=0.01)
    assert about["window_s"] >= 10.0


def test_idle_power_that_drifts_is_said_and_widens_the_interval(board: Board) -> None:
    board.idle_w = lambda now_s: IDLE_W + 0.05 * (now_s - 100.0)  # warms up: 0.8 W in 16 s
    value, about = measure(board, counter(board), window_s=10.0)
    assert about["notes"] == ["idle_drift"]
    assert about["idle_after_w"] - about["idle_before_w"] == pytest.approx(0.05 * 14.5, rel=0.02)
    assert value.median == pytest.approx(TRUE_J_PER_TOKEN, rel=0.02)
    assert (
        value.ci95[0] < TRUE_J_PER_TOKEN * (1 - 0.36 / LOAD_W) < TRUE_J_PER_TOKEN * (1 + 0.36 / LOAD_W) < value.ci95[1]
    )


def test_threads_that_spin_while_idle_are_said(board: Board) -> None:
    idle = board.sleep

    def spin(seconds: float) -> None:
        idle(seconds)
        board.cpu_s += seconds

    value, about = measure_energy(board.step, counter(board), clock=board.clock, sleep=spin, cpu_clock=board.cpu_clock)
    assert value is not None
    assert about["notes"] == ["idle_busy"]


def test_tokens_longer_than_a_part_still_give_an_interval(board: Board) -> None:
    board.token_s = 2.5
    value, about = measure(board, counter(board))
    assert value.n == about["n_tokens"] == 6
    assert value.ci95 is not None
    assert value.median == pytest.approx(2.5 * LOAD_W)


@pytest.mark.parametrize("alive_s", [0.0, 2.0, 8.0])
def test_meter_pulled_out_half_way_gives_none_and_the_reason(board: Board, alive_s: float) -> None:
    value, about = measure(board, wattmeter(board, until_s=100.0 + alive_s))
    assert value is None
    assert about["error"] == "power1_input: No such device"
    assert (about["meter"], about["scope"]) == ("simulated", "board-input")
    assert board.log is None
    assert board.now_s < 100.0 + alive_s + 4.1  # and the rest of the window is not waited for


def test_meter_pulled_out_in_the_last_seconds_gives_none(board: Board) -> None:
    end_s = 100.0 + energy_seconds(wattmeter(board))
    value, about = measure(board, wattmeter(board, until_s=end_s - 1.3))
    assert value is None
    assert about["error"] == "power1_input: No such device"


def test_meter_that_hangs_gives_none(board: Board) -> None:
    def hang() -> None:
        if board.now_s > 108.0:
            board.due_s = math.inf
        board.step()

    value, about = measure_energy(
        hang,
        wattmeter(board),
        clock=board.clock,
        sleep=board.sleep,
        open_log=lambda meter, _: SteppedLog(board, meter),
    )
    assert value is None
    assert "no reading for" in about["error"]


@pytest.mark.parametrize("power_w", [-1.0, 5000.0, math.nan])
def test_meter_that_reads_nonsense_gives_none(board: Board, power_w: float) -> None:
    value, about = measure(board, constant(power_w))
    assert value is None
    assert about["error"] == f"reads {power_w:g} W"


@pytest.mark.parametrize("power_w", [0.0, 4.0])
def test_meter_that_does_not_see_the_load_gives_none(board: Board, power_w: float) -> None:
    value, about = measure(board, constant(power_w))
    assert value is None
    assert about["error"].startswith("reads no more under load")
    assert about["busy_w"] == pytest.approx(power_w)


def test_single_failed_readings_are_bridged(board: Board) -> None:
    n = 0

    def stutter() -> float:
        nonlocal n
        n += 1
        if n % 3 == 0:
            raise MeterError("Input/output error")
        return board.power_w()

    value, _ = measure(board, Meter(name="simulated", read_power_w=stutter))
    assert value.median == pytest.approx(TRUE_J_PER_TOKEN, rel=0.01)


def test_a_failing_step_ends_the_log_and_passes_through(board: Board) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        measure_energy(
            fail,
            wattmeter(board),
            clock=board.clock,
            sleep=board.sleep,
            open_log=lambda meter, _: SteppedLog(board, meter),
        )
    assert board.log is None


def test_load_step_is_an_unequal_pattern(board: Board) -> None:
    steps = load_step(board.step, clock=board.clock, sleep=board.sleep)
    assert [begin - 100.0 for begin, _ in steps] == pytest.approx([2.0, 4.5], abs=2 * TOKEN_S)
    assert [end - begin for begin, end in steps] == pytest.approx([1.5, 0.7], abs=2 * TOKEN_S)
    assert board.now_s - steps[-1][1] == pytest.approx(2.0)
    assert len({*LOAD_STEPS_S}) == len(LOAD_STEPS_S)


def test_external_meter_gets_windows_and_no_value(board: Board) -> None:
    value, about = measure(board, None)
    assert value is None
    assert (about["meter"], about["scope"]) == ("external", None)
    windows = about["windows"]
    assert windows["clock"] == "monotonic"
    assert windows["boot_id"] == boot_id()  # that clock starts again with each boot
    assert len(windows["steps"]) == 2
    ends = [windows["steps"][-1][1], *windows["idle"], *windows["busy"], *windows["idle_after"]]
    assert ends == sorted(ends)
    assert windows["idle"][1] - windows["idle"][0] == pytest.approx(3.0)
    assert windows["busy"][1] - windows["busy"][0] >= 10.0
    assert windows["idle_after"][1] == pytest.approx(100.0 + energy_seconds(None), abs=10 * TOKEN_S)
    assert windows["n_tokens"] == about["n_tokens"] == round((windows["busy"][1] - windows["busy"][0]) / TOKEN_S)


def test_whole_takes_the_seconds_that_were_announced(board: Board) -> None:
    meters: tuple[Meter, ...] = (wattmeter(board), counter(board), wattmeter(board, period_s=1.5))
    for meter in meters:
        began_s = board.now_s
        measure(board, meter)
        assert board.now_s - began_s == pytest.approx(energy_seconds(meter), abs=3 * TOKEN_S)


def test_trapezoids_follow_a_ramp_and_windows_cut_them(board: Board) -> None:
    board.idle_w = lambda now_s: 2.0 * (now_s - 100.0)
    with SteppedLog(board, wattmeter(board, period_s=0.5)) as log:
        board.sleep(10.0)
    assert log.mean_w(100.0, 110.0) == pytest.approx(10.0)
    assert log.mean_w(102.2, 107.3) == pytest.approx(2 * 4.75, rel=0.01)
    assert log.n_readings(102.2, 107.3) == 10


def test_gap_in_the_readings_is_an_error(board: Board) -> None:
    with SteppedLog(board, wattmeter(board)) as log:
        board.sleep(1.0)
        board.due_s += MAX_GAP_S + 0.5  # the thread got no core
        board.sleep(5.0)
    assert log.mean_w(100.0, 100.85) == pytest.approx(IDLE_W)
    with pytest.raises(MeterError, match=r"no reading for 1\.\d s"):
        log.mean_w(100.5, 105.0)
    with pytest.raises(MeterError, match=r"no reading for 3\.\d s"):
        log.mean_w(104.0, log.times_s[-1] + 3.5)


def test_too_few_readings_are_an_error(board: Board) -> None:
    log = EnergyLog(counter(board), board.clock)
    log.mark()
    with pytest.raises(MeterError, match="fewer than two"):
        log.mean_w(100.0, 101.0)


def test_real_thread_samples_survives_a_late_reading_and_ends() -> None:
    threads = []

    def read() -> float:
        threads.append(threading.current_thread().name)
        if len(threads) == 3:
            time.sleep(0.1)
        return 2.0

    with EnergyLog(Meter(name="real", period_s=0.02, read_power_w=read)) as log:
        began = log.mark()
        time.sleep(0.5)
        ended = log.mark()
    assert log.mean_w(began, ended) == pytest.approx(2.0)
    assert set(threads) == {"MainThread", "power"}
    assert 5 <= log.n_readings(began, ended) <= 21  # about 20 without catching up for those that were missed
    assert not any(thread.name == "power" for thread in threading.enumerate())


def test_thread_that_cannot_start_is_a_meter_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    value, about = measure_energy(lambda: None, constant(2.0))
    assert value is None
    assert about["error"] == "can't start new thread"
