"""Published loss laws: what N parameters trained on D tokens may reach. For ranking, not for promising.

chinchilla  Hoffmann et al. 2022 (Training Compute-Optimal Large Language Models, arXiv 2203.15556), equation 10:

                L = 1.69 + 406.4 / N^0.34 + 410.7 / D^0.28        nats per token

            N counts all parameters with the embedding, as their tables do. The constants are disputed (Besiroglu et al.
            2024, arXiv 2404.10102, refit 1.82, 482, 0.348, 2085, 0.366).
kaplan      Kaplan et al. 2020 (Scaling Laws for Neural Language Models, arXiv 2001.08361), equation 1.5 with table 2:

                L = ((6.4e13 / N)^(0.076 / 0.103) + 1.8e13 / D)^0.103

            N leaves out the embedding, as `decoder_params` does, and their models begin far below a million parameters.

Both were fitted on other models, another text and another tokenizer. At equal D the order of models is that of their N
by either law, whatever the constants: what a law adds is how much a difference in size is worth.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edge_lts.arch import Architecture

TOKENS_PER_PARAM = (
    20  # below that a smaller model on more tokens costs no more and is better (Hoffmann et al., table 3)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LossLaw:
    """A law with its source; `loss` takes N as the law counts it, and D."""

    name: str
    citation: str
    fitted_on: str
    counts: str
    params: tuple[float, float]
    tokens: tuple[float, float]
    loss: Callable[[float, float], float]

    def n_params(self, architecture: Architecture) -> int:
        """N as this law counts it."""
        return architecture.total_params if self.counts == "total_params" else architecture.decoder_params

    def is_extrapolated(self, n_params: float, n_tokens: float) -> bool:
        """Whether it was fitted on nothing of that kind."""
        return not (self.params[0] <= n_params <= self.params[1] and self.tokens[0] <= n_tokens <= self.tokens[1])


LAWS = {
    law.name: law
    for law in (
        LossLaw(
            name="chinchilla",
            citation="Hoffmann et al. 2022, arXiv 2203.15556, eq. 10",
            fitted_on="homogeneous decoders of 70 M to 16 B parameters and 5 to 500 G tokens of other text",
            counts="total_params",
            params=(70e6, 16e9),
            tokens=(5e9, 500e9),
            loss=lambda n, d: 1.69 + 406.4 / n**0.34 + 410.7 / d**0.28,
        ),
        LossLaw(
            name="kaplan",
            citation="Kaplan et al. 2020, arXiv 2001.08361, eq. 1.5",
            fitted_on="homogeneous decoders of 768 to 1.5 G parameters without embedding and 22 M to 23 G tokens of "
            "other text",
            counts="decoder_params",
            params=(768, 1.5e9),
            tokens=(22e6, 23e9),
            loss=lambda n, d: ((6.4e13 / n) ** (0.076 / 0.103) + 1.8e13 / d) ** 0.103,
        ),
    )
}
