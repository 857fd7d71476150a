"""What a text is made of, and what an explanation of it holds: tensors and strings only."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


class Parts(NamedTuple):
    """A prompt as token ids, and the part that each token belongs to.

    Attributes:
        ids: The prompt's token ids, (1, P).
        mask: The part of each token, (P,): 0 to ``n - 1``, or -1 for a token that is fixed.
        n: The number of parts; a part may have no token.
        labels: The text of each part, n strings.
        spans: The first character of each part and the one after its last, (n, 2).
        text: The prompt.
        by: What the parts are: "token", "word", "sentence", "paragraph", "document" or "span".
    """

    ids: Tensor
    mask: Tensor
    n: int
    labels: tuple[str, ...] = ()
    spans: Tensor | None = None
    text: str = ""
    by: str = "span"

    def feature_mask(self) -> Tensor:
        """The mask for a method's ``feature_mask=``, (1, P), where negative ids are fixed.

        Give ``n_features=parts.n`` with it. For embeddings (1, P, D) add a dimension:
        ``parts.feature_mask()[..., None]``.
        """
        return self.mask[None]


class Game(NamedTuple):
    """The score of an answer as a function of which parts of the prompt are there.

    Attributes:
        fn: A model function: z (R, n), 1 where a part is there and 0 where it is removed, to the
            scores (R, N); (R, 1) where the game has one number for the whole answer.
        full: Ones (1, n): the inputs to explain. The baseline 0 is the default of all methods.
        answer: The ids of the answer, (1, N).
        foil: Those of the foil, (1, N), or None.
        labels: The text of each part.
    """

    fn: Callable[[Tensor], Tensor]
    full: Tensor
    answer: Tensor
    foil: Tensor | None = None
    labels: tuple[str, ...] = ()


class TextAttribution(NamedTuple):
    """What each part of a prompt contributed to each token of an answer.

    Attributes:
        values: (N, n): of part k to the score of answer token i.
        total: (n,): to the whole answer.
        scores: (N,): the scores with all parts there.
        empty: (N,): the scores with no part there; None where nothing was removed.
        parts: The text of each part, in the prompt's order.
        answer: The text of each answer token.
        spans: The characters of the parts in the prompt, (n, 2), or None.
        score: The name of the score.
        method: The name of the method.
        stderr: (N, n): standard errors of sampling methods, or None.
    """

    values: Tensor
    total: Tensor
    scores: Tensor
    empty: Tensor | None
    parts: tuple[str, ...]
    answer: tuple[str, ...]
    spans: Tensor | None = None
    score: str = "log_prob"
    method: str = ""
    stderr: Tensor | None = None
