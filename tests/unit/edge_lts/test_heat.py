from collections.abc import Callable
from pathlib import Path

import pytest

from edge_lts.health import Health
from edge_lts.heat import CoolDown, Steady


class Board:
    """A board whose temperature follows `cool` of the seconds since the load ended; its clock moves by sleeping."""

    def __init__(self, root: Path, start_c: float | None = 45.0) -> None:
        self.root = root
        self.now_s = 1000.0
        self.idle_since_s = self.now_s
        self.temperature = start_c
        self.cool: Callable[[float], float | None] = lambda _: self.temperature
        self.n_sleeps = 0

    def read(self) -> Health:
        return Health(temperature_c=self.cool(self.now_s - self.idle_since_s))

    def clock(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.n_sleeps += 1
        self.now_s += seconds

    def load(self, cool: Callable[[float], float | None]) -> None:
        self.cool = cool
        self.idle_since_s = self.now_s


def falling(from_c: float, to_c: float, per_s: float = 0.5) -> Callable[[float], float]:
    return lambda idle_s: max(to_c, from_c - per_s * idle_s)


def test_a_board_that_never_throttles_is_not_waited_for(tmp_path: Path) -> None:
    board = Board(tmp_path)
    cooling = CoolDown(board, board.clock, board.sleep)
    board.load(falling(74.0, 45.0))
    assert cooling.before_candidate("burst") == 0.0
    assert (board.n_sleeps, cooling.event) == (0, None)


def test_near_the_throttle_point_it_waits_until_the_starts_temperature_plus_five(tmp_path: Path) -> None:
    board = Board(tmp_path)
    cooling = CoolDown(board, board.clock, board.sleep)
    board.load(falling(76.0, 45.0))
    assert cooling.before_candidate("burst") == pytest.approx(52.0)
    assert cooling.event == {
        "event": "cooled",
        "waited_s": 52.0,
        "from_c": 76.0,
        "to_c": 50.0,
        "target_c": 50.0,
        "reason": "reached",
    }
    assert cooling.before_candidate("burst") == 0.0
    assert cooling.waited_s == pytest.approx(52.0)


def test_the_throttle_point_is_that_of_the_board(tmp_path: Path) -> None:
    zone = tmp_path / "sys/class/thermal/thermal_zone0"
    zone.mkdir(parents=True)
    for name, text in (("type", "soc-thermal"), ("trip_point_0_type", "passive"), ("trip_point_0_temp", "70000")):
        (zone / name).write_text(text)
    board = Board(tmp_path)
    cooling = CoolDown(board, board.clock, board.sleep)
    board.load(falling(66.0, 40.0))
    assert cooling.throttle_c == 70.0
    assert cooling.before_candidate("burst") > 0


@pytest.mark.parametrize("how", ["flag", "bit", "sticky"])
def test_once_it_has_throttled_every_candidate_waits(tmp_path: Path, how: str) -> None:
    board = Board(tmp_path)
    cooling = CoolDown(board, board.clock, board.sleep)
    cooling.saw(["noisy"], {"throttle": {"now": 1, "before": 4, "after": 4}})
    board.load(falling(60.0, 45.0))
    assert cooling.before_candidate("burst") == 0.0
    if how == "flag":
        cooling.saw(["throttled"])
    else:
        cooling.saw(health={"throttle": {"now": 4 if how == "bit" else 0, "before": 0, "after": 4}})
    assert cooling.to_json()["has_throttled"] is True
    assert cooling.before_candidate("burst") == pytest.approx(20.0)


def test_sustained_heat_never_waits(tmp_path: Path) -> None:
    board = Board(tmp_path)
    cooling = CoolDown(board, board.clock, board.sleep)
    cooling.saw(["throttled"])
    board.load(falling(85.0, 45.0))
    assert cooling.before_candidate("sustained") == 0.0


def test_the_target_is_at_most_sixty_degrees_or_as_given(tmp_path: Path) -> None:
    board = Board(tmp_path, start_c=70.0)
    assert CoolDown(board, board.clock, board.sleep).target_c == 60.0
    assert CoolDown(board, board.clock, board.sleep, target_c=42.0).target_c == 42.0


def test_what_cannot_be_reached_is_given_up_and_not_tried_again(tmp_path: Path) -> None:
    board = Board(tmp_path)
    cooling = CoolDown(board, board.clock, board.sleep)
    cooling.saw(["throttled"])
    board.load(falling(70.0, 58.3))  # the room has become warm
    assert cooling.before_candidate("burst") == pytest.approx(24 + 30, abs=2)
    assert cooling.event is not None
    assert cooling.event["reason"] == "floor"
    assert cooling.target_c == pytest.approx(60.0, abs=1)
    board.load(falling(70.0, 58.3))
    assert cooling.before_candidate("burst") < 25
    assert cooling.event["reason"] == "reached"


def test_it_waits_no_longer_than_its_limit(tmp_path: Path) -> None:
    board = Board(tmp_path)
    cooling = CoolDown(board, board.clock, board.sleep)
    board.load(falling(90.0, 40.0, per_s=0.05))
    assert cooling.before_candidate("burst") == pytest.approx(300.0)
    assert cooling.event is not None
    assert cooling.event["reason"] == "timeout"


def test_it_can_be_stopped(tmp_path: Path) -> None:
    board = Board(tmp_path)
    cooling = CoolDown(board, board.clock, board.sleep, should_stop=lambda: board.n_sleeps >= 3)
    board.load(falling(90.0, 40.0))
    assert cooling.before_candidate("burst") == 3.0
    assert cooling.event is not None
    assert cooling.event["reason"] == "stopped"


def test_without_a_sensor_or_when_it_is_lost_there_is_no_waiting(tmp_path: Path) -> None:
    board = Board(tmp_path, start_c=None)
    cooling = CoolDown(board, board.clock, board.sleep)
    cooling.saw(["throttled"])
    assert cooling.before_candidate("burst") == 0.0
    board.load(falling(80.0, 40.0))  # it appears later: there is no temperature of the start to go back to
    assert cooling.before_candidate("burst") == 0.0
    board = Board(tmp_path)
    cooling = CoolDown(board, board.clock, board.sleep)
    board.load(lambda idle_s: 80.0 if idle_s < 5 else None)
    assert cooling.before_candidate("burst") == 5.0
    assert cooling.event is not None
    assert cooling.event["reason"] == "lost"


def fed(steady: Steady, temperature: Callable[[float], float | None], step_s: float = 5.0) -> float:
    now_s = 0.0
    while not steady.feed(now_s, temperature(now_s)):
        now_s += step_s
    return now_s


def test_a_warming_board_is_steady_when_it_moves_by_less_than_a_degree_in_a_minute() -> None:
    steady = Steady()
    assert fed(steady, lambda s: 80 - 40 * 0.98**s) == 230.0
    assert steady.reason == "steady"
    assert steady.to_json()["temperature_c"] == pytest.approx(80, abs=1)
    assert fed(Steady(), lambda s: 50.0, step_s=25.0) == 75.0  # sparse readings have to span the window, too


def test_a_board_that_goes_on_moving_is_given_up_after_a_quarter_of_an_hour() -> None:
    steady = Steady()
    assert fed(steady, lambda s: 60 + 2 * (s // 5 % 2)) == 900.0
    assert steady.reason == "timeout"


def test_without_a_sensor_the_warm_up_lasts_one_window() -> None:
    steady = Steady()
    assert fed(steady, lambda s: None) == 60.0
    assert steady.to_json() == {"event": "warmed", "reason": "no_sensor", "spent_s": 60.0, "temperature_c": None}
    now_and_then = Steady()
    assert fed(now_and_then, lambda s: 50.0 if s % 10 == 0 else None) == 60.0
    assert now_and_then.reason == "steady"
