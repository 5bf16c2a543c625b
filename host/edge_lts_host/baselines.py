"""What `--baseline` names: families of decoders that people scale by hand, OPT-350M, or architectures of one's own.

    scaled-gpt2             16 depths of 1,024 x 2,048 with 8 heads (Javaheripi et al. 2022, arXiv 2203.02094: the
                            authors' baseline_configs_*.yaml has 12 heads, which do not divide 1,024)
    scaled-transformer-xl   16 depths of 512 x 2,048 with 8 heads, from the same place
    opt-350m                the published shape (Zhang et al. 2022, arXiv 2205.01068), all of it
    FILE                    JSON: an architecture, or a list of them

Of a scaled family only the decoder is the paper's. Vocabulary, embedding, positions and tying are those of the space
that the run searches, so that what is compared is the decoder. Imports no numpy.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edge_lts.arch import Architecture, LayerSpec
from edge_lts.baselines import MAX_BASELINES, Baseline
from edge_lts.errors import ArchitectureError
from edge_lts_host.errors import UsageError

DEPTHS = range(1, 17)
# d_model, d_inner, n_head, backbone
SCALED = {"scaled-gpt2": (1024, 2048, 8, "gpt2"), "scaled-transformer-xl": (512, 2048, 8, "transformer-xl")}
OPT_350M = Architecture(
    backbone="opt",
    d_model=1024,
    d_embed=512,
    layers=(LayerSpec(d_inner=4096, n_head=16),) * 24,
    vocab_size=50272,
    max_seq_len=2048,
)
NAMES = (*SCALED, "opt-350m")
MAX_FILE_BYTES = 4 << 20


def resolve(names: Sequence[str], space: Mapping[str, Any]) -> tuple[Baseline, ...]:
    """The baselines that `names` mean beside a search of `space` (its JSON), each architecture once.

    Raises UsageError for a name that is none and for a file that holds no architecture.
    """
    found: dict[str, Baseline] = {}
    for name in names:
        family, architectures = _family(name, space)
        for one in architectures:
            found.setdefault(one.arch_id, Baseline(family=family, architecture=one))
    if len(found) > MAX_BASELINES:
        raise UsageError(f"--baseline: {len(found)} architectures are more than {MAX_BASELINES}; name fewer")
    return tuple(found.values())


def label(family: str, architecture: Architecture, own: Sequence[Architecture]) -> str:
    """What a report calls one of them: the family, and of several in it (`own`) the depth, or what is unmistakable."""
    if len(own) == 1:
        return family
    depths = [one.n_layer for one in own]
    if len(set(depths)) < len(depths):
        return f"{family} {architecture.arch_id}"
    return f"{family} {architecture.n_layer} layer{'s' * (architecture.n_layer != 1)}"


def describe(
    baselines: Sequence[Baseline],
    space: Mapping[str, Any],
    seconds: Callable[[Architecture], float],
    share_s: float,
    duration: Callable[[float], str],
) -> list[str]:
    """What `run` says of them: how many, what they may take, and what makes the comparison lame.

    `seconds` guesses how long one takes to measure on a slow board.
    """
    families = dict.fromkeys(one.family for one in baselines)
    guess_s = sum(seconds(one.architecture) for one in baselines)
    lines = [
        f"{len(baselines)} baselines ({', '.join(families)}) take up to {duration(share_s)} of the budget; once each "
        f"would be about {duration(guess_s)} on a slow board"
        + ("" if guess_s <= share_s else ": there may be no time for all of them")
    ]
    others = sorted({one.architecture.backbone for one in baselines} - {str(space.get("backbone"))})
    if others:
        lines.append(
            f"baselines of another backbone ({', '.join(others)}): decoder_params was shown to rank perplexity within "
            "a backbone, not across"
        )
    return lines


def _family(name: str, space: Mapping[str, Any]) -> tuple[str, list[Architecture]]:
    if name in SCALED:
        d_model, d_inner, n_head, backbone = SCALED[name]
        layer = LayerSpec(d_inner=d_inner, n_head=n_head)
        ends = _ends(space)
        return name, [
            Architecture(backbone=backbone, d_model=d_model, layers=(layer,) * depth, **ends) for depth in DEPTHS
        ]
    if name == "opt-350m":
        return name, [OPT_350M]
    path = Path(name)
    if not path.is_file():
        raise UsageError(f"--baseline: {name!r:.80} is neither a file nor one of {', '.join(NAMES)}")
    family = re.sub(r"[^a-z0-9_.-]", "-", path.stem.lower())[:60].lstrip("_.-") or "file"
    return family, _read(path)


def _ends(space: Mapping[str, Any]) -> dict[str, Any]:
    """Everything about an architecture of the space that is not its decoder; of genes the largest value."""
    fixed, genes = dict(space.get("fixed") or {}), dict(space.get("genes") or {})
    for gene in ("vocab_size", "d_embed"):
        values = genes.get(gene)
        if values:
            fixed[gene] = values["max"] if isinstance(values, Mapping) else max(values)
    keys = ("vocab_size", "d_embed", "embedding_factor", "max_seq_len", "tie_embeddings")
    return {key: int(fixed[key]) if key != "tie_embeddings" else fixed[key] for key in keys if key in fixed}


def _read(path: Path) -> list[Architecture]:
    try:
        with path.open("rb") as file:
            data = json.loads(file.read(MAX_FILE_BYTES))
    except OSError as exc:
        raise UsageError(f"--baseline: cannot read {path}: {exc.strerror or exc}") from exc
    except (ValueError, RecursionError) as exc:
        raise UsageError(f"--baseline: {path} is not JSON: {exc!s:.100}") from exc
    items = data if isinstance(data, list) else [data]
    if not items:
        raise UsageError(f"--baseline: {path} holds no architecture")
    try:
        return [Architecture.from_json(item) for item in items]
    except ArchitectureError as exc:
        raise UsageError(f"--baseline: {path}: {exc}") from exc
