"""A text as token ids: read from the files of a job, handed out as batches and as windows to validate on.

Shapes: B windows, T tokens. Every window has T + 1 ids: inputs are all but the last, targets all but the first.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edge_lts.errors import SpecError
from edge_lts.training import TOKEN_BYTES, Text

_STEPS_PER_SEED = 1_000_003  # two seeds share no batch within so many steps


@dataclass(frozen=True, slots=True)
class Data:
    """Ids of the text that is trained on and of the one that is held out; bytes per token of the latter."""

    training: NDArray[Any]
    validation: NDArray[Any]
    bytes_per_token: float

    def check(self, sequence_tokens: int) -> None:
        """Raises SpecError for a text that is shorter than a window."""
        for what, ids in (("text", self.training), ("held-out text", self.validation)):
            if len(ids) < sequence_tokens + 2:
                raise SpecError(f"the {what} has {len(ids)} tokens, too few for windows of {sequence_tokens}")

    def batch(self, seed: int, step: int, n_windows: int, sequence_tokens: int) -> Tensor:
        """(B, T + 1) ids of step `step`: windows that begin anywhere, the same for every model of this seed."""
        generator = torch.Generator().manual_seed(seed * _STEPS_PER_SEED + step)
        last = len(self.training) - sequence_tokens - 1
        starts = torch.randint(last + 1, (n_windows,), generator=generator)
        return _windows(self.training, starts.tolist(), sequence_tokens)

    def held_out(self, sequence_tokens: int, n_tokens: int | None) -> Tensor:
        """(B, T + 1): windows side by side that cover the held-out text, or `n_tokens` of it spread evenly."""
        last = (len(self.validation) - 1) // sequence_tokens
        n_windows = last if n_tokens is None else max(1, min(last, n_tokens // sequence_tokens))
        starts = [window * last // n_windows * sequence_tokens for window in range(n_windows)]
        return _windows(self.validation, starts, sequence_tokens)


def _windows(ids: NDArray[Any], starts: list[int], length: int) -> Tensor:
    rows = np.stack([ids[start : start + length + 1] for start in starts])
    return torch.from_numpy(rows.astype(np.int64))


def read_data(folder: Path, text: Text) -> Data:
    """The files that `text` names, mapped into memory. Raises SpecError naming the file."""
    return Data(
        _ids(folder / text.training, text.vocab_size), _ids(folder / text.validation, text.vocab_size),
        text.bytes_per_token,
    )  # fmt: skip


def _ids(path: Path, vocab_size: int) -> NDArray[Any]:
    try:
        if path.stat().st_size % TOKEN_BYTES or not path.stat().st_size:
            raise SpecError(f"{path} holds no whole number of token ids")
        ids = np.memmap(path, dtype="<u2", mode="r")
    except OSError as exc:
        raise SpecError(f"{path}: {exc.strerror or exc}") from exc
    largest = int(ids.max())
    if largest >= vocab_size:
        raise SpecError(f"{path} holds the id {largest}, beyond its vocabulary of {vocab_size}")
    return ids
