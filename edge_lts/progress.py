"""What a supervisor remembers of its run: counts, what was measured, and the frontier.

Samples stay in the ledger, and so does everything about candidates that are dominated, because the supervisor shares
its memory with the candidate it watches: a few hundred bytes per candidate are kept here.
"""

import dataclasses
import itertools
import json
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from edge_lts.arch import Architecture
from edge_lts.frontier import Frontier, Member
from edge_lts.ledger import LedgerReader
from edge_lts.records import ASIDE, SCHEMA_VERSION, Evaluation, Failure, Outcome, RunSpec
from edge_lts.runfolder import FRONTIER, LEDGER, RunFolder, write_atomic
from edge_lts.speed import BOARD_FACTOR, anchors_of
from edge_lts.stats import MIN_PROCESSES_PI95

FORGET_EVERY = 64
_KEPT = ("framework", BOARD_FACTOR)  # conditions that a frontier shows or needs


class Progress:
    """The outcomes of one run so far, in the order of the ledger; each is recorded there before it is added here."""

    def __init__(self, folder: RunFolder, spec: RunSpec) -> None:
        self._folder = folder
        self._spec = spec
        self._frontier = Frontier(spec.resolved_objectives, spec.constraints, recall=self._recall)
        self._failed_confirmations: dict[str, int] = {}
        self.candidate_ids: dict[str, int] = {}  # arch_id -> candidate_id of everything that was searched
        self.member_ids: list[str] = []
        self.probable_ids: list[str] = []  # only probably dominated
        self.confirm_s = 0.0  # of the budget, in records that confirm
        self.baseline_s = 0.0  # and in those of baselines
        self.baseline_processes: Counter[str] = Counter()  # arch_id -> processes that gave a value
        self.failed_baselines: set[str] = set()
        self.is_last_confirmed = False  # whether the last record is such a one
        self._spent_s = 0.0
        self.n_measured = self.n_failed = self.n_confirmations = self._n_failed_confirmations = self._n_one_thread = 0
        self._n_baseline_records = 0

    @property
    def n_search(self) -> int:
        """Candidates that the search has measured or failed to measure."""
        return self.n_measured + self.n_failed

    def counts(self) -> dict[str, int]:
        counts = {
            "n_measured": self.n_measured,
            "n_failed": self.n_failed,
            "n_confirmations": self.n_confirmations,
            "n_frontier": len(self.member_ids),
        }
        return {**counts, "n_baselines": len(self.baseline_processes)} if self._spec.baselines else counts

    def add(self, outcome: Outcome) -> None:
        """Count and remember one outcome. The frontier follows with `update_members`."""
        arch_id = outcome.architecture.arch_id
        if outcome.purpose == "one_thread":
            self._n_one_thread += 1
            if isinstance(outcome, Evaluation):
                self._frontier.add_one_thread(arch_id, outcome)
            return
        if outcome.purpose == "baseline":
            self._add_baseline(outcome)
            return
        if isinstance(outcome, Evaluation):
            self._frontier.add(arch_id, _slim(outcome))
        self.is_last_confirmed = outcome.purpose == "confirm"
        if self.is_last_confirmed:
            self.confirm_s += max(0.0, outcome.spent_s - self._spent_s)
        self._spent_s = max(self._spent_s, outcome.spent_s)
        if outcome.purpose == "search":
            self.candidate_ids[arch_id] = outcome.candidate_id
            if isinstance(outcome, Evaluation):
                self.n_measured += 1
            else:
                self.n_failed += 1
        elif isinstance(outcome, Evaluation):
            self.n_confirmations += 1
        else:
            self._n_failed_confirmations += 1
            self._failed_confirmations[arch_id] = self._failed_confirmations.get(arch_id, 0) + 1

    def _add_baseline(self, outcome: Outcome) -> None:
        self._n_baseline_records += 1
        self.baseline_s += max(0.0, outcome.spent_s - self._spent_s)
        self._spent_s = max(self._spent_s, outcome.spent_s)
        if isinstance(outcome, Evaluation):
            self.baseline_processes[outcome.architecture.arch_id] += 1
        else:
            self.failed_baselines.add(outcome.architecture.arch_id)

    def replay(self, outcome: Outcome) -> None:
        """`add` for a record of an earlier life, with the frontier as far as memory needs it."""
        self.add(outcome)
        if outcome.purpose != "search" or self.n_search % FORGET_EVERY == 0:
            self.update_members()

    def first_outcome(self, arch_id: str) -> Outcome:
        """What the search learned of an architecture, read back from the ledger."""
        return next(outcome for outcome in self._recorded([arch_id]) if outcome.purpose == "search")

    def as_told(self, outcome: Outcome) -> Outcome:
        """What a searcher hears: an evaluation lacking an objective or a constrained quantity is a failure to it."""
        if isinstance(outcome, Failure):
            return outcome
        names = (*self._spec.objectives, *(constraint.name for constraint in self._spec.constraints))
        missing = [name for name in names if outcome.objectives.get(name) is None]
        if not missing:
            return outcome
        return Failure(
            candidate_id=outcome.candidate_id,
            architecture=outcome.architecture,
            kind="unsupported",
            message=f"{missing[0]} cannot be measured here",
        )

    def update_members(self) -> bool:
        """Find out who stands on the frontier; whether others do than before."""
        before = self.member_ids
        self.member_ids = self._frontier.member_ids()
        self.probable_ids = self._frontier.probable_ids()
        return before != self.member_ids

    def n_attempts(self, arch_id: str) -> int:
        """Processes in which a member was measured, or failed while it was to be confirmed."""
        return len(self._frontier.processes(arch_id)) + self._failed_confirmations.get(arch_id, 0)

    def unconfirmed(self) -> list[str]:
        """Members that have not been tried in as many processes as `pi95` needs."""
        return self._untried(self.member_ids)

    def without_one_thread(self) -> list[str]:
        """Members that have not been measured on one thread."""
        return [arch_id for arch_id in self.member_ids if not self._frontier.has_one_thread(arch_id)]

    def unconfirmed_probable(self) -> list[str]:
        """The same of those that are only probably dominated."""
        return self._untried(self.probable_ids)

    def _untried(self, arch_ids: Sequence[str]) -> list[str]:
        return [arch_id for arch_id in arch_ids if self.n_attempts(arch_id) < MIN_PROCESSES_PI95]

    def members(self, names: Collection[str] | None = None) -> list[Member]:
        """Members, then those probably dominated, with what their processes say; `ci95` of several is left out.

        `pi95` is worked out for the objectives `names` alone, None for all.
        """
        return self._frontier.members(names)

    def architecture(self, arch_id: str) -> Architecture:
        """A member's architecture."""
        return self._frontier.processes(arch_id)[0].architecture

    def _recall(self, arch_ids: Collection[str], *, keep_samples: bool = False) -> dict[str, list[Evaluation]]:
        """The processes of some architectures, as far as they have been added."""
        groups: dict[str, list[Evaluation]] = {arch_id: [] for arch_id in arch_ids}
        for outcome in self._recorded(arch_ids):
            if isinstance(outcome, Evaluation) and outcome.purpose not in ASIDE:
                groups[outcome.architecture.arch_id].append(_slim(outcome, keep_samples=keep_samples))
        return groups

    def _recorded(self, arch_ids: Collection[str]) -> Iterator[Outcome]:
        """The ledger's records of some architectures, up to the last one that was added."""
        n_added = self.n_search + self.n_confirmations + self._n_failed_confirmations + self._n_one_thread
        n_added += self._n_baseline_records
        for outcome in itertools.islice(LedgerReader(self._folder / LEDGER).outcomes(), n_added):
            if outcome.architecture.arch_id in arch_ids:
                yield outcome

    def write_frontier(self, *, is_final: bool = False) -> None:
        """Replace frontier.json; the final one has `ci95` of several processes and is on the disk. Raises OSError."""
        if is_final:
            groups = self._recall([*self.member_ids, *self.probable_ids], keep_samples=True)
            members = self._frontier.combine(list(groups.items()))
        else:
            members = self._frontier.members()
        write_atomic(self._folder / FRONTIER, self._frontier_json(members), is_durable=is_final)

    def _frontier_json(self, members: Sequence[Member]) -> Iterator[bytes]:
        """The file in pieces: a frontier of hundreds is a megabyte of text."""
        head = {
            "schema_version": SCHEMA_VERSION,
            "run_id": self._spec.run_id,
            "objectives": list(self._spec.objectives),
            "n_measured": self.n_measured,
        }
        yield json.dumps(head).encode("ascii")[:-1] + b', "frontier": ['
        for index, member in enumerate(members):
            yield (b",\n" if index else b"\n") + json.dumps(member.to_json(), allow_nan=False).encode("ascii")
        yield b"]}\n"


def _slim(evaluation: Evaluation, *, keep_samples: bool = False) -> Evaluation:
    samples = evaluation.samples if keep_samples else {}
    conditions: dict[str, Any] = {"anchor_s": anchors_of(evaluation)}
    conditions.update((name, evaluation.conditions[name]) for name in _KEPT if name in evaluation.conditions)
    return dataclasses.replace(evaluation, samples=samples, conditions=conditions)
