"""The score of an answer as a function of the prompt's ids or embeddings."""

from __future__ import annotations

import functools
from typing import Any, Literal

import torch
from torch import Tensor, nn

import attrfn
from attrfn._explain.explain import explain
from attrfn._torch.say import say
from attrfn._torch.typing import ModelFn
from attrfn.text._adapter import Adapter, Read, bare
from attrfn.text._adapters import adapter
from attrfn.text._answer import foil_ids, token_ids
from attrfn.text._calls import check_ids
from attrfn.text._scores import Score, check_score, runner_up_of, scores_of


class Scorer(nn.Module):
    """A model of texts and a score, as a module whose layers have the names of the model's."""

    def __init__(self, to: Adapter, score: Score | None, whole: bool, embeds: bool) -> None:
        super().__init__()
        self.adapter, self.training = to, to.training
        self.score, self.whole, self.embeds = score, whole, embeds

    @property
    def asks_model(self) -> Any:
        """The model whose rows these are."""
        return self.adapter.model

    def forward(
        self,
        x: Tensor,
        answer: Tensor,
        foil: Tensor | None = None,
        reference: Tensor | None = None,
        **bound: Any,
    ) -> Tensor:
        """The scores (R, N) of the answers after prompts; the logits (R, N, V) without a score."""
        given: object = x
        if not isinstance(given, Tensor) or x.ndim != 2 + self.embeds or x.shape[1] == 0:
            form = "embeddings (R, P, D)" if self.embeds else "token ids (R, P)"
            raise ValueError(
                f"inputs is {say(x)}, expected {form} with at least one token before the answer"
            )
        answer = answer.expand(len(x), -1)
        logits = self.adapter.of_prompt(x, answer, self.embeds, bound)
        if self.score is None:
            return logits
        foil = None if foil is None else foil.expand(len(x), -1)
        return scores_of(logits, answer, self.score, foil, reference, self.whole)

    @property
    def attrfn_inside(self) -> object:
        """The model, whose names of layers hold here, too."""
        return self.adapter.model


def scorer(
    model: Any,
    answer: Any,
    *,
    foil: Any = None,
    score: Score = "log_prob",
    inputs: Literal["ids", "embeds"] = "ids",
    whole: bool = False,
    reference: Tensor | None = None,
    logits: Read | None = None,
    keep_logits: bool = True,
    **bound: Any,
) -> ModelFn:
    """The score of an answer as a model function of the prompt: ids (R, P) to (R, N).

        log_prob    log p(a_i | prompt, a_0 ... a_i-1)          of a foil f: l[a_i] - l[f_i]

    One forward pass of [prompt answer] gives the scores of all answer tokens; its last token is not
    read. All methods explain the result: perturbation methods the ids, gradient methods the
    embedding by ``layer=model.get_input_embeddings()``, or embeddings with ``inputs="embeds"``.
    At the embedding layer the activation has an entry for each token that the model reads, the
    prompt's P first. Layers are modules of the model or their names in it.

    Args:
        model: A causal language model from ids (R, T) to logits (R, T, V) or an output with
            ``.logits``, an encoder-decoder, or what :func:`causal`, :func:`seq2seq`,
            :func:`classifier` and :func:`masked` make.
        answer: Its token ids, (1, N), or (B, N) with one for each prompt.
        foil: Ids in the place of the answer's, (1, N): the score is then less that of the foil, at
            each place under the answer's prefix. See :func:`runner_up`.
        score: ``"log_prob"``, ``"logit"``, ``"prob"``, ``"log_odds"``, ``"entropy"``, ``"kl"``, or
            a callable ``(logits (R, N, V), answer (R, N)) -> (R, N) or (R,)``.
        inputs: ``"ids"``, or ``"embeds"`` for embeddings (R, P, D).
        whole: Add the score of the whole answer as a last column: sums, the mean entropy, the
            product of probabilities, and its log-odds.
        reference: For ``"kl"``: log-probabilities (1, N, V) with the whole prompt.
        logits: From the model's output to its logits.
        keep_logits: Ask the model for the logits that are needed, where it can.
        **bound: Further arguments of the model, tensors with a row for each prompt among them, such
            as ``attention_mask`` (B, P): the answer's tokens are added.

    Returns:
        A ``functools.partial`` of a module, whose answers follow the batch.

    Raises:
        TypeError: The answer is not of integers, or the score of an unknown kind.
        ValueError: The foil is not as long as the answer, or an option has a wrong value.

    Example:
        >>> import torch, attrfn
        >>> from attrfn import text
        >>> bag = lambda ids: torch.nn.functional.one_hot(ids, 3).float().cumsum(1)
        >>> f = text.scorer(bag, [[0]], foil=[[1]])
        >>> attrfn.feature_ablation(f, torch.tensor([[1, 2, 0]]), baselines=2)
        tensor([[-1.,  0.,  1.]])
    """
    check_score(score, foil)
    if inputs not in ("ids", "embeds"):
        raise ValueError(f"inputs is {say(inputs)}, expected 'ids' or 'embeds'")
    to = adapter(model, logits, keep_logits)
    ids = token_ids(answer, "answer")
    check_ids(to.model, ids, "answer", to.answers)
    given: dict[str, Any] = {"answer": ids}
    if foil is not None:
        if isinstance(foil, str):
            raise ValueError(
                f"foil is {foil!r}, which depends on the prompt, expected token ids: give "
                "foil=text.runner_up(model, prompt, answer)"
            )
        given["foil"] = foil_ids(foil, ids)
        check_ids(to.model, given["foil"], "foil", to.answers)
    if reference is not None:
        given["reference"] = reference
    module = Scorer(bare(to), score, whole, inputs == "embeds")
    marked = {name: _marked(t) for name, t in given.items()}
    return functools.partial(module, **marked, **to.bound, **bound)


def _marked(t: Tensor) -> Tensor:
    """A tensor of one row for all prompts, or of one for each: one row of one prompt is as good."""
    found: Tensor = attrfn.shared(t) if len(t) == 1 else attrfn.per_example(t)
    return found


def runner_up(model: Any, prompt: Tensor, answer: Any, **bound: Any) -> Tensor:
    """The best token at each place of an answer that is not the answer's: a foil, (B, N).

    Args:
        model: As for :func:`scorer`.
        prompt: Token ids, (B, P).
        answer: Token ids, (1, N) or (B, N).
        **bound: Further arguments of the model.

    Example:
        >>> import torch
        >>> from attrfn import text
        >>> bigram = lambda ids: torch.tensor([[0.0, 1.0, 2.0], [2, 0, 1], [1, 2, 0]])[ids]
        >>> text.runner_up(bigram, torch.tensor([[1]]), [[0, 2]])
        tensor([[2, 1]])
    """
    ids = token_ids(answer, "answer", prompt.device)
    to = adapter(model)
    f = functools.partial(
        Scorer(bare(to), None, False, False), answer=_marked(ids), **to.bound, **bound
    )
    p = explain(f, prompt, None, differentiated=False, forward_only=True)
    with torch.no_grad():
        return runner_up_of(p.model(prompt), ids.expand(len(prompt), -1))
