"""What check_model finds, as a table."""

from __future__ import annotations

from typing import NamedTuple


class Finding(NamedTuple):
    """One property of a model.

    Attributes:
        name: Its name.
        good: Whether it is as attribution needs it; None where it was not checked.
        text: What was found.
    """

    name: str
    good: bool | None
    text: str


class ModelReport(NamedTuple):
    """What :func:`attrfn.testing.check_model` found; its text is a table.

    Attributes:
        findings: The properties of the model.
        layers: Its layers: whether each can be explained, and the shape of its output.
    """

    findings: tuple[Finding, ...]
    layers: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong with the model; layers do not count."""
        return all(f.good is not False for f in self.findings)

    def find(self, name: str) -> Finding:
        """The finding, or the layer, of a name."""
        for finding in (*self.findings, *self.layers):
            if finding.name == name:
                return finding
        raise KeyError(name)

    def __str__(self) -> str:
        tables = [_table("model", self.findings)]
        if self.layers:
            tables.append(_table("layer", self.layers))
        return "\n\n".join(tables)

    def __repr__(self) -> str:
        return str(self)


def _table(title: str, rows: tuple[Finding, ...]) -> str:
    width = max(len(title), *[len(r.name) for r in rows])
    lines = [f"{title:<{width}}  ok   what was found", f"{'-' * width}  ---  {'-' * 40}"]
    for r in rows:
        mark = "-" if r.good is None else "yes" if r.good else "NO"
        lines.append(f"{r.name:<{width}}  {mark:<3}  {r.text}")
    return "\n".join(lines)
