"""Writes docs/methods/ops.md: what DeepLIFT and LRP do at each operation.

Run: python docs/op_table.py
"""

from collections.abc import Mapping
from pathlib import Path

from attrfn._rules.relevance import RELEVANCE
from attrfn._rules.rescale import DIFFERENCE
from attrfn._rules.table import Op

PAGE = Path(__file__).parent / "methods" / "ops.md"

HEAD = """\
# Operations with rules

What [DeepLIFT and LRP](rules.md) do at each operation of PyTorch that gets values which depend on
the inputs. This page is printed from their tables by `docs/op_table.py`. An operation counts in all
its spellings: `relu` is `torch.relu`, `F.relu`, `x.relu()`, `x.relu_()` and `nn.ReLU`;
`__getitem__` is `x[...]`; names with `special_`, `linalg_` and `fft_` are those of `torch.special`,
`torch.linalg` and `torch.fft`. What is not in a table raises
[`UnsupportedOpError`](rules.md#operations-without-a-rule), unless no derivative passes through it.
"""

REFUSED = "refused"
LINEAR = "It is linear, so its own derivative is right for every rule."
CONSTANT = "Its value does not depend on those of the inputs."
DECOMPOSED = "Decomposed into simpler operations with rules; the value stays the operation's own."
EVALUATED = "Linear in evaluation mode, refused in training mode."
ONLY_INPUT = "Linear in the input; refused where another argument depends on the inputs."
ONLY_DENSE = "Linear in the dense matrix; refused where the sparse one depends on the inputs."
OF_IMAGE = "Linear in the image; the grid counts as a constant, and alone it is refused."

OF_DEEP_LIFT = {
    "linear": LINEAR,
    "constant": CONSTANT,
    "elementwise": "The rescale rule. Of two arguments: the mean over both orders of change.",
    "product": "Linear where one factor depends on the inputs, else the product rule.",
    "quotient": "Linear in the numerator alone, the rescale rule for the divisor alone; for both, "
    "the product rule of a = y b.",
    "normalisation": "A quotient by the root of a mean of squares, with the product rule for them.",
    "softmax": "Its change in closed form, by the logarithmic mean.",
    "maximum": "The rule of maxima.",
    "maximum of groups": "The rule of maxima in each group; sums and means of groups are linear.",
    "order": "The sum of the k greatest values is a maximum of sums; the k-th is a difference of "
    "two.",
    "inverse": "A X = B for both A and B, without other inverses than the model's own.",
    "sampling": "Linear in the image, the rescale rule for each coordinate of the grid.",
    "decomposed": DECOMPOSED,
    "linear (evaluation mode)": EVALUATED,
    "linear in the input": ONLY_INPUT,
    "linear in the dense matrix": ONLY_DENSE,
    REFUSED: "There is no rule.",
}
OF_LRP = {
    "linear": LINEAR,
    "constant": "It takes no relevance, and passes none on.",
    "elementwise": "All relevance passes. Of two arguments that depend on the inputs: refused.",
    "product": "Equal shares for the factors that depend on the inputs with a derivative.",
    "linear, by rule": "The rule of the composite. Of two factors that depend on the inputs: "
    "equal shares.",
    "constant divisor": "All relevance goes to what is divided; the divisor counts as a constant.",
    "own derivative": "The derivative of the operation itself.",
    "decomposed": DECOMPOSED,
    "linear (evaluation mode)": EVALUATED,
    "folded into the operation before it": "One operation with the linear one before it; linear "
    "elsewhere, refused in training mode.",
    "linear in the input": ONLY_INPUT,
    "linear in the image": OF_IMAGE,
    "linear in the dense matrix": ONLY_DENSE,
    REFUSED: "There is no rule.",
}


def page() -> str:
    groups: dict[tuple[str, str], list[str]] = {}
    for name in sorted({*DIFFERENCE, *RELEVANCE}):
        groups.setdefault((_kind(DIFFERENCE, name), _kind(RELEVANCE, name)), []).append(name)
    parts = [HEAD]
    for i, (title, meaning) in enumerate((("DeepLIFT", OF_DEEP_LIFT), ("LRP", OF_LRP))):
        met = {kinds[i] for kinds in groups}
        lines = [f"| {kind} | {meaning[kind]} |" for kind in sorted(met, key=[*meaning].index)]
        parts.append(_table(f"In {title}", ("called", "means"), lines))
    lines = [
        f"| {a} | {b} | {' '.join(f'`{name}`' for name in names)} |"
        for (a, b), names in sorted(groups.items(), key=lambda g: _order(*g[0]))
    ]
    parts.append(_table("All operations", ("DeepLIFT", "LRP", "operations"), lines))
    return "\n".join(parts)


def _kind(table: Mapping[str, Op], name: str) -> str:
    return table[name].kind if name in table else REFUSED


def _order(deep_lift: str, lrp: str) -> tuple[int, int]:
    return [*OF_DEEP_LIFT].index(deep_lift), [*OF_LRP].index(lrp)


def _table(title: str, columns: tuple[str, ...], lines: list[str]) -> str:
    head = [f"## {title}", "", f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    return "\n".join([*head, *lines, ""])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")
