"""The certificate against pretended machines on which the fastest of every size is known."""

import numpy as np
import pytest

from edge_lts.arch import Architecture
from edge_lts.objectives import resolve_objectives
from edge_lts.pareto import nondominated
from edge_lts.records import Evaluation, central
from edge_lts.search.guided import GuidedSearcher
from edge_lts.search.predictor import Predictor
from edge_lts.space import SearchSpace
from edge_lts_host.report.certificate import Certificate, certify
from tests.pretended import PROTOCOL, Machine, seconds

SPACE = SearchSpace.from_json(
    {
        "name": "counted",
        "backbone": "gpt2",
        "genes": {
            "n_layer": [2, 3, 4],
            "d_model": [128, 192, 256],
            "d_inner": [256, 512, 768, 1024],
            "n_head": [2, 4],
        },
        "fixed": {"vocab_size": 1024},
    }
)
OBJECTIVES = resolve_objectives(["decoder_params", "decode_latency_s"])
EVERYTHING = list(SPACE.enumerate())


def search(machine: Machine, n: int) -> tuple[Predictor, list[Evaluation]]:
    searcher = GuidedSearcher(SPACE, OBJECTIVES, 1, protocol=PROTOCOL)
    predictor, told = Predictor(PROTOCOL), []
    while len(told) < n and (candidates := searcher.ask(1)):
        told.append(machine.measure(candidates[0].candidate_id, candidates[0].architecture))
        searcher.tell(told[-1].candidate_id, told[-1])
        predictor.tell(told[-1])
    assert predictor.fit()
    return predictor, told


def frontier(told: list[Evaluation]) -> list[tuple[Architecture, dict[str, float]]]:
    times = [float(central(item.objectives["decode_latency_s"]) or 0) for item in told]
    losses = np.array([[-item.architecture.decoder_params, t] for item, t in zip(told, times, strict=True)], float)
    return [(told[i].architecture, {"decode_latency_s": times[i]}) for i in np.flatnonzero(nondominated(losses))]


def certified(machine: Machine, n: int) -> tuple[Certificate, list[tuple[Architecture, dict[str, float]]]]:
    predictor, told = search(machine, n)
    members = frontier(told)
    (certificate,) = certify(predictor, SPACE, OBJECTIVES, (), members)
    assert len(certificate.shares) == len(members)
    return certificate, members


@pytest.mark.parametrize(("noise", "slow"), [(0.002, None), (0.01, None), (0.01, (192, 512))])
def test_nothing_in_the_space_is_faster_than_certified(noise: float, slow: tuple[int, int] | None) -> None:
    certificate, members = certified(Machine(noise=noise, drift=0.0, slow=slow), 60)
    for (arch, values), share in zip(members, certificate.shares, strict=True):
        fastest = min(seconds(other, slow) for other in EVERYTHING if other.decoder_params >= arch.decoder_params)
        assert fastest >= (1 - share) * values["decode_latency_s"], arch.arch_id
    assert certificate.margin > 2


def test_less_noise_certifies_more() -> None:
    noisy, _ = certified(Machine(noise=0.05, drift=0.0), 60)
    quiet, _ = certified(Machine(noise=0.002, drift=0.0), 60)
    assert quiet.to_json()["median_share"] < noisy.to_json()["median_share"]  # type: ignore[operator]
    assert quiet.shares != noisy.shares


def test_a_poor_frontier_is_not_certified_to_be_good() -> None:
    """A member at twice the time of the best of its size: the certificate must leave room for half."""
    predictor, told = search(Machine(noise=0.002, drift=0.0), 60)
    members = [(arch, {"decode_latency_s": 2 * values["decode_latency_s"]}) for arch, values in frontier(told)]
    (certificate,) = certify(predictor, SPACE, OBJECTIVES, (), members)
    assert min(certificate.shares) > 0.45


def test_there_is_none_for_what_was_not_measured() -> None:
    predictor, told = search(Machine(), 30)
    assert certify(predictor, SPACE, OBJECTIVES, (), []) == []
    assert (
        certify(predictor, SPACE, resolve_objectives(["decoder_params", "peak_memory_bytes"]), (), frontier(told)) == []
    )
