"""Objectives by name, built-in or of the user's own command."""

from typing import Any

import pytest

from edge_lts.errors import SpecError
from edge_lts.objectives import CommandObjective, resolve_objectives

SCORE = CommandObjective(name="score", direction="max", command="./score")


def test_a_command_gives_an_objective_without_unit_in_its_direction() -> None:
    params, score = resolve_objectives(["decoder_params", "score"], [SCORE])
    assert (params.name, score.name, score.unit, score.direction) == ("decoder_params", "score", "1", "max")
    assert score.is_measured
    assert score.loss(3.0) == -3.0
    assert CommandObjective.from_json(SCORE.to_json()) == SCORE


@pytest.mark.parametrize(
    ("names", "commands", "message"),
    [
        (["decoder_params", "score"], [], "unknown objective 'score'"),
        (["decoder_params", "peak_memory_bytes"], [SCORE], "score has a command but is not among the objectives"),
        (["decoder_params", "score"], [SCORE, SCORE], "two commands define one objective"),
        (["score"], [SCORE], "two to five objectives, not 1"),
        ("decoder_params", [], "must be a list"),
    ],
)
def test_names_and_commands_have_to_agree(names: object, commands: list[CommandObjective], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        resolve_objectives(names, commands)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "Score"}, "cannot name an objective"),
        ({"name": "score\n"}, "cannot name an objective"),
        ({"name": "s" * 41}, "cannot name an objective"),
        ({"name": 5}, "cannot name an objective"),
        ({"name": "decode_latency_s"}, "is a built-in objective"),
        ({"direction": "up"}, "must be min or max"),
        ({"direction": ["min"]}, "must be min or max"),
        ({"command": " "}, "a line for /bin/sh"),
        ({"command": None}, "a line for /bin/sh"),
        ({"command": "echo \0"}, "NUL"),
        ({"command": "x" * 8001}, "put it in a file"),
        ({"timeout": 5}, "name, direction and command"),
    ],
)
def test_a_command_that_makes_no_sense_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        CommandObjective.from_json({**SCORE.to_json(), **changes})
