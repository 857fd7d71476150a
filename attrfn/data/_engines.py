"""The engines of ``explain``: names, and what Ray is told."""

from __future__ import annotations

import dataclasses
from typing import Any

from attrfn._copies.batch import is_count
from attrfn._torch.say import say


@dataclasses.dataclass(frozen=True)
class Ray:
    """The engine Ray, with what each worker gets: ``attrfn.data.explain(..., engine=Ray(...))``.

    ``engine="ray"`` is ``engine=Ray()``. A worker is an actor that holds the model. Workers for
    which the cluster has no room wait until it has.

    Args:
        workers: How many there are; ``None``: as many as the cluster has room for.
        cpus: Cores for each, also its threads of torch.
        gpus: GPUs for each, also a part of one, such as 0.5; ``None``: 1 if the cluster has any,
            else 0. Where it is not 0, the model is moved to the GPU of the worker.

    Raises:
        ValueError: An argument is not a number of the expected size.

    Example:
        >>> import attrfn.data
        >>> attrfn.data.Ray(workers=8, gpus=0.5)
        Ray(workers=8, cpus=1, gpus=0.5)
    """

    workers: int | None = None
    cpus: float = 1
    gpus: float | None = None

    def __post_init__(self) -> None:
        """Refuse what is no number."""
        if self.workers is not None and not is_count(self.workers):
            raise ValueError(f"workers is {say(self.workers)}, expected at least 1, or None")
        if not _is_amount(self.cpus) or self.cpus == 0:
            raise ValueError(
                f"cpus is {say(self.cpus)}, expected a whole number, or a part of one such as 0.5"
            )
        if self.gpus is not None and not _is_amount(self.gpus):
            raise ValueError(
                f"gpus is {say(self.gpus)}, expected a whole number, a part of one such as 0.5, or "
                "None"
            )


def _is_amount(value: Any) -> bool:
    """Whether Ray can hand out so many: a whole number, or a part of one."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    return 0 <= value < 1 or (1 <= value < 1e6 and value == int(value))


def check_engine(engine: Any) -> None:
    """Refuse what is no engine.

    Raises:
        ValueError: It is none.
    """
    if not isinstance(engine, Ray) and (
        not isinstance(engine, str) or engine not in ("local", "ray", "torchrun")
    ):
        raise ValueError(
            f"engine is {say(engine)}, expected 'local', 'ray', attrfn.data.Ray(...) or 'torchrun'"
        )
