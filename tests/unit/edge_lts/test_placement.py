import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge_lts import placement
from edge_lts.arch import Architecture
from edge_lts.errors import Interrupted
from edge_lts.placement import Placement, choose_threads, clusters, place, sweep, thread_counts
from edge_lts.records import Evaluation, Failure, Measurement, Outcome, Protocol, Purpose

CPU = "sys/devices/system/cpu"
A53, A55, A73, A76, A720 = 0xD03, 0xD05, 0xD09, 0xD0B, 0xD81


def board(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def cores(
    root: Path, parts: list[int], policies: dict[str, int] | None = None, capacities: list[int] | None = None
) -> Path:
    """A tree with one core per part, policies {"0 1": kHz} and capacities."""
    files = {
        f"{CPU}/cpu{i}/regs/identification/midr_el1": f"0x00000000414f{part:03x}0\n" for i, part in enumerate(parts)
    }
    for i, capacity in enumerate(capacities or []):
        files[f"{CPU}/cpu{i}/cpu_capacity"] = f"{capacity}\n"
    for related, khz in (policies or {}).items():
        folder = f"{CPU}/cpufreq/policy{related.split()[0]}"
        files |= {f"{folder}/related_cpus": f"{related}\n", f"{folder}/cpuinfo_max_freq": f"{khz}\n"}
    return board(root, files)


def rk3588(root: Path) -> Path:
    policies = {"0 1 2 3": 1800000, "4 5": 2304000, "6 7": 2352000}
    return cores(root, [A55] * 4 + [A76] * 4, policies, [414] * 4 + [1003] * 2 + [1024] * 2)


@pytest.fixture
def affinity(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | set[int]], None]:
    def use(cpus: int | set[int]) -> None:
        allowed = set(range(cpus)) if isinstance(cpus, int) else cpus
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: allowed, raising=False)

    return use


Affinity = Callable[[int | set[int]], None]


def test_a_pi_5_is_one_cluster_and_nothing_is_pinned(tmp_path: Path, affinity: Affinity) -> None:
    affinity(4)
    cores(tmp_path, [A76] * 4, {"0 1 2 3": 2400000}, [1024] * 4)
    expected = Placement(cpus=(0, 1, 2, 3), threads=4, n_clusters=1, policy="all-cores")
    assert place(0, tmp_path) == expected
    assert clusters(tmp_path)[0].core == "Cortex-A76"
    assert place(2, tmp_path).threads == 2
    assert place(2, tmp_path).cpus == (0, 1, 2, 3)


def test_no_board_gets_more_threads_than_cores(tmp_path: Path, affinity: Affinity) -> None:
    affinity(2)
    assert place(4, cores(tmp_path, [A76] * 2)).threads == 2


def test_an_rk3588_measures_on_its_four_big_cores(tmp_path: Path, affinity: Affinity) -> None:
    affinity(8)
    found = clusters(rk3588(tmp_path))
    assert [(one.cpus, one.core, one.capacity) for one in found] == [
        ((4, 5, 6, 7), "Cortex-A76", 1024),
        ((0, 1, 2, 3), "Cortex-A55", 414),
    ]
    assert found[0].max_frequency_hz == 2_352_000_000
    expected = Placement(cpus=(4, 5, 6, 7), threads=4, n_clusters=2, policy="fastest-cluster")
    assert place(0, tmp_path) == expected
    assert place(2, tmp_path).cpus == (4, 5, 6, 7)


def test_asking_for_more_threads_than_big_cores_takes_the_next_cluster_and_says_so(
    tmp_path: Path, affinity: Affinity
) -> None:
    affinity(8)
    expected = Placement(cpus=tuple(range(8)), threads=6, n_clusters=2, policy="more-than-fastest")
    assert place(6, rk3588(tmp_path)) == expected


def test_only_cores_of_the_affinity_count(tmp_path: Path, affinity: Affinity) -> None:
    affinity({0, 1, 4})
    assert place(0, rk3588(tmp_path)) == Placement(cpus=(4,), threads=1, n_clusters=2, policy="fastest-cluster")
    affinity({0, 1})
    assert place(0, tmp_path) == Placement(cpus=(0, 1), threads=2, n_clusters=1, policy="all-cores")


@pytest.mark.parametrize("capacities", [None, [1024] * 6], ids=["no capacity", "all the same"])
def test_an_in_order_core_is_slower_whatever_its_clock(
    tmp_path: Path, affinity: Affinity, capacities: list[int] | None
) -> None:
    affinity(6)  # an Odroid-N2: the little ones have the higher clock
    cores(tmp_path, [A53] * 2 + [A73] * 4, {"0 1": 1896000, "2 3 4 5": 1800000}, capacities)
    assert place(0, tmp_path).cpus == (2, 3, 4, 5)


def test_without_capacities_and_kinds_the_clock_decides(tmp_path: Path, affinity: Affinity) -> None:
    affinity(8)  # as an Odroid-XU4 on an old kernel
    board(
        tmp_path,
        {
            f"{CPU}/cpufreq/policy0/related_cpus": "0 1 2 3\n",
            f"{CPU}/cpufreq/policy0/cpuinfo_max_freq": "1400000\n",
            f"{CPU}/cpufreq/policy4/related_cpus": "4 5 6 7\n",
            f"{CPU}/cpufreq/policy4/cpuinfo_max_freq": "2000000\n",
        },
    )
    assert place(0, tmp_path).cpus == (4, 5, 6, 7)


def test_kinds_come_from_cpuinfo_where_registers_are_not_shown(tmp_path: Path, affinity: Affinity) -> None:
    affinity(4)
    blocks = [
        f"processor: {i}\nCPU implementer: 0x41\nCPU part: {p}" for i, p in enumerate(["0xd03"] * 2 + ["0xd09"] * 2)
    ]
    board(tmp_path, {"proc/cpuinfo": "\n\n".join(blocks)})
    assert [(one.cpus, one.core) for one in clusters(tmp_path)] == [((2, 3), "Cortex-A73"), ((0, 1), "Cortex-A53")]


def test_cores_of_one_kind_are_one_cluster_only_at_nearly_one_speed(tmp_path: Path, affinity: Affinity) -> None:
    affinity(6)
    cores(tmp_path, [A720] * 6, {"0 1": 2600000, "2 3": 2500000, "4 5": 2200000})
    assert [one.cpus for one in clusters(tmp_path)] == [(0, 1, 2, 3), (4, 5)]


def test_an_x86_without_cpufreq_uses_all_its_cores(tmp_path: Path, affinity: Affinity) -> None:
    affinity(2)
    board(tmp_path, {"proc/cpuinfo": "processor: 0\nmodel name: Xeon\n\nprocessor: 1\nmodel name: Xeon\n"})
    assert place(0, tmp_path) == Placement(cpus=(0, 1), threads=2, n_clusters=1, policy="all-cores")


def test_a_containers_quota_bounds_the_default_and_not_the_users_word(tmp_path: Path, affinity: Affinity) -> None:
    affinity(8)
    board(rk3588(tmp_path), {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "250000 100000\n"})
    assert place(0, tmp_path).threads == 2
    assert place(3, tmp_path).threads == 3


def test_applying_asks_the_kernel_and_survives_a_refusal(monkeypatch: pytest.MonkeyPatch, affinity: Affinity) -> None:
    affinity(8)
    asked: list[Any] = []
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cpus: asked.append((pid, tuple(cpus))), raising=False)
    pinned = Placement(cpus=(4, 5), threads=2, n_clusters=2, policy="fastest-cluster")
    assert placement.apply(pinned)
    assert asked == [(0, (4, 5))]
    affinity({4, 5})
    assert placement.apply(pinned)
    assert len(asked) == 1  # nothing to do

    def refuse(pid: int, cpus: object) -> None:
        raise OSError

    monkeypatch.setattr(os, "sched_setaffinity", refuse)
    affinity(8)
    assert not placement.apply(pinned)


def test_children_inherit_the_cores() -> None:
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < 2:
        pytest.skip("one core has nothing to choose from")
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        ok = placement.apply(Placement(cpus=(allowed[1],), threads=1, n_clusters=2, policy="fastest-cluster"))
        if os.fork() == 0:
            os.write(write, f"{ok} {sorted(os.sched_getaffinity(0))}".encode())
            os._exit(0)
        os.wait()
        os._exit(0)
    os.close(write)
    os.waitpid(pid, 0)
    assert os.read(read, 100).decode() == f"True {[allowed[1]]}"
    os.close(read)


def test_placement_is_json() -> None:
    data = Placement(cpus=(4, 5), threads=2, n_clusters=2, policy="fastest-cluster").to_json()
    assert data == {"cpus": [4, 5], "policy": "fastest-cluster", "n_clusters": 2, "threads": 2}


@pytest.mark.parametrize(
    ("n", "counts"),
    [(1, (1,)), (4, (1, 2, 3, 4)), (8, tuple(range(1, 9))), (12, (1, 2, 4, 6, 8, 12)), (16, (1, 2, 4, 8, 16))],
)
def test_counts_to_try(n: int, counts: tuple[int, ...]) -> None:
    assert thread_counts(n) == counts


@pytest.mark.parametrize(
    ("decode_s", "chosen"),
    [
        ({1: 10.0, 2: 6.0, 3: 6.2, 4: 6.4}, 3),
        ({1: 10.0, 2: 9.6, 4: 9.9}, 4),
        ({1: 1.0, 2: 1.051}, 1),
        ({1: 1.0, 2: 1.05}, 2),
        ({2: 3.0, 4: 5.0}, 2),
        ({1: 1.0, 2: 3.0, 4: 0.5}, 4),
    ],
)
def test_fewer_threads_win_only_when_clearly_faster(decode_s: dict[int, float], chosen: int) -> None:
    assert choose_threads(decode_s) == chosen


def test_nothing_cannot_be_chosen_from() -> None:
    with pytest.raises(ValueError, match="nothing"):
        choose_threads({})


class Board:
    """Decodes in the times given, None for a failure."""

    def __init__(self, decode_s: dict[int, list[float | None]]) -> None:
        self.decode_s = decode_s
        self.asked: list[Protocol] = []

    def measure(
        self,
        candidate_id: int,
        architecture: Architecture,
        purpose: Purpose = "search",
        *,
        protocol: Protocol | None = None,
    ) -> Outcome:
        assert protocol is not None
        self.asked.append(protocol)
        seconds = self.decode_s[protocol.threads].pop(0)
        if seconds is None:
            return Failure(candidate_id=candidate_id, architecture=architecture, kind="oom", message="")
        return Evaluation(
            candidate_id=candidate_id,
            architecture=architecture,
            objectives={"decode_latency_s": Measurement(median=seconds, n=1)},
            samples={},
            conditions={},
        )


def test_the_sweep_keeps_the_best_of_two_and_reports_as_json() -> None:
    measuring = Board({1: [0.9, 1.0], 2: [0.7, 0.5], 3: [0.9, 0.8], 4: [None, None]})
    protocol = Protocol(precision="bfloat16", context_tokens=1000)
    assert sweep(measuring, protocol, 4) == {"threads": 2, "decode_s": {"1": 0.9, "2": 0.5, "3": 0.8}}
    assert [one.threads for one in measuring.asked] == [1, 1, 2, 2, 3, 3, 4, 4]
    assert {(one.precision, one.context_tokens, one.decode_samples) for one in measuring.asked} == {
        ("bfloat16", 128, 12)
    }


def test_a_sweep_without_a_result_keeps_all_threads() -> None:
    assert sweep(Board({1: [None, None], 2: [None, None]}), Protocol(), 2) == {"threads": 2, "decode_s": {}}


def test_a_sweep_stops_between_measurements() -> None:
    measuring = Board({1: [0.9, 1.0], 2: [0.7, 0.5]})
    with pytest.raises(Interrupted):
        sweep(measuring, Protocol(), 2, lambda: len(measuring.asked) >= 3)
    assert len(measuring.asked) == 3


def test_the_reference_has_a_few_million_decoder_parameters() -> None:
    assert 2e6 < placement.REFERENCE.decoder_params < 4e6
