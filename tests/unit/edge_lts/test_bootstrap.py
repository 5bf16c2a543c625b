"""`pi95` over machines that are made up: whether it holds a later process as often as it says."""

import math
import time

import numpy as np
import pytest

from edge_lts.bootstrap import Process, pi95, sampling_sd

SPREAD = 0.03


def session(
    rng: np.random.Generator, n_members: int, n: int, kind: str, corrected: float = 0.0
) -> tuple[list[list[Process]], list[float]]:
    """Members with `n` processes each at random times of one hour, and of each one process some time later.

    `corrected` is the share of the machine's drift that its anchors have told.
    """
    later = 1 + rng.uniform(0.1, 0.7)
    at = np.sort(np.concatenate([rng.uniform(0, 1, n_members * n), rng.uniform(later, later + 0.3, n_members)]))
    who = np.concatenate([rng.permutation(np.repeat(np.arange(n_members), n)), rng.permutation(n_members)])
    noise, drift = rng.standard_normal(len(at)), np.zeros(len(at))
    if kind == "heavy":
        noise = rng.standard_t(3, len(at))
    elif kind == "member":
        noise *= rng.choice([0.4, 1.0, 2.0], n_members)[who]
    elif kind.startswith("drift"):  # first-order autoregressive with this correlation time
        steps = np.diff(at, prepend=-9.0)
        for index, step in enumerate(rng.standard_normal(len(at))):
            kept = math.exp(-steps[index] / float(kind[5:]))
            drift[index] = kept * drift[index - 1] + math.sqrt(1 - kept**2) * 0.05 * step
    elif kind == "walk":
        drift = np.cumsum(rng.standard_normal(len(at)) * np.sqrt(np.diff(at, prepend=0))) * 0.08
    logs = np.linspace(0, 2, n_members)[who] + drift + SPREAD * noise
    members: list[list[Process]] = [[] for _ in range(n_members)]
    fresh = [0.0] * n_members
    for index, member in enumerate(who):
        raw = math.exp(logs[index])
        if index < n_members * n:
            members[member].append(Process(at[index], raw, raw / math.exp(corrected * drift[index])))
        else:
            fresh[member] = raw
    return members, fresh


def coverage(n_members: int, n: int, kind: str, n_sessions: int, corrected: float = 0.0) -> float:
    rng = np.random.default_rng(11)
    hits = []
    for _ in range(n_sessions):
        members, fresh = session(rng, n_members, n, kind, corrected)
        for interval, value in zip(pi95(members), fresh, strict=True):
            assert interval is not None
            hits.append(interval[0] <= value <= interval[1])
    return float(np.mean(hits))


@pytest.mark.parametrize(("n_members", "n_sessions"), [(3, 150), (30, 40)])
@pytest.mark.parametrize("kind", ["even", "heavy", "member", "drift0.02", "drift0.1"])
def test_a_later_process_lies_inside_95_percent_of_the_time(kind: str, n_members: int, n_sessions: int) -> None:
    assert 0.925 <= coverage(n_members, 3, kind, n_sessions) <= 0.985


@pytest.mark.parametrize("kind", ["drift0.4", "walk"])
def test_drift_as_slow_as_the_run_is_only_partly_seen(kind: str) -> None:
    """Three occasions of a machine that wanders off cannot say how far it will go."""
    assert 0.80 <= coverage(30, 3, kind, 40) <= 0.985


def test_drift_that_the_anchors_told_is_still_met_by_a_raw_process() -> None:
    assert 0.925 <= coverage(30, 3, "drift0.1", 40, corrected=0.8) <= 0.99


def test_more_processes_narrow_the_interval_and_never_below_the_spread_of_one() -> None:
    rng = np.random.default_rng(3)
    widths = []
    for n in (3, 10):
        halves = [math.log(high / low) / 2 for low, high in filter(None, pi95(session(rng, 20, n, "even")[0]))]
        widths.append(float(np.median(halves)))
    assert 1.9 * SPREAD <= widths[1] < widths[0] <= 3.0 * SPREAD


def test_it_needs_three_processes_and_positive_values() -> None:
    def member(*values: float) -> list[Process]:
        return [Process(float(index), value, value) for index, value in enumerate(values)]

    assert pi95([]) == []
    assert pi95([member(1.0), member(2.0, 2.1)]) == [None, None]
    found = pi95([member(1.0, 1.1), member(2.0, 2.1, 2.2), member(0.0, 1.0, 2.0)])
    assert found[0] is found[2] is None
    assert found[1] is not None
    assert found[1][0] < 2.0 < 2.2 < found[1][1]
    assert pi95([member(5.0, 5.0, 5.0)]) == [(pytest.approx(5.0), pytest.approx(5.0))]
    assert pi95([member(1e-300, 1.0, 1e300)]) == [None]


def test_the_same_data_give_the_same_interval_and_others_add_to_it() -> None:
    members, _ = session(np.random.default_rng(4), 6, 3, "even")
    assert pi95(members) == pi95(members)
    assert pi95(members)[:1] != pi95(members[:1])


def test_nobody_is_believed_to_be_steadier_than_its_samples() -> None:
    still = [[Process(float(i), 1.0, 1.0, sampling_sd((0.96, 1.04))) for i in range(3)] for _ in range(3)]
    (low, high), *_ = (interval for interval in pi95(still) if interval is not None)
    assert high / low > 1.04 / 0.96
    loud, quiet = 0.05, 0.005
    rng = np.random.default_rng(5)
    members = [
        [Process(float(rng.random()), value, value, sd) for value in np.exp(sd * rng.standard_normal(5))]
        for sd in [loud] * 5 + [quiet] * 5
    ]
    widths = [math.log(high / low) for low, high in filter(None, pi95(members))]
    assert min(widths[:5]) > 3 * max(widths[5:])


def test_sixty_members_cost_little() -> None:
    members, _ = session(np.random.default_rng(6), 60, 5, "drift0.1")
    begun = time.process_time()
    pi95(members)
    assert time.process_time() - begun < 0.3
