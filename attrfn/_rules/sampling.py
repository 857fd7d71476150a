"""grid_sample where the grid depends on the inputs, under DeepLIFT."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attrfn._rules.call import Call
from attrfn._rules.record import Record
from attrfn._rules.replay import Replay
from attrfn._rules.run import Values
from attrfn._rules.slopes import slope
from attrfn._rules.table import own_derivative


def grid_sample(run: Record | Replay, call: Call) -> Any:
    """Linear in the input; of the grid, a function of each coordinate."""
    if call.places in (((0, None),), (("input", None),)):
        return own_derivative(run, call)
    kwargs = {k: v for k, v in call.kwargs.items() if k not in ("input", "grid")}
    args = (call.argument(0, "input"), call.argument(1, "grid"), *call.args[2:])
    places = tuple([({"input": 0, "grid": 1}.get(str(key), key), j) for key, j in call.places])
    return run.primitive(call._replace(args=args, kwargs=kwargs, places=places), _sampled)


def _sampled(run: Replay, call: Call, z: Values, x: Values, x0: Values) -> Tensor:
    y: Tensor = call(*x)
    (image, grid), (image0, grid0) = (call.filled(t)[0][:2] for t in (x, x0))
    mean_image = (image + image0) / 2
    slopes = _slopes(call, mean_image, grid, grid0)

    def sample(image: Tensor, grid: Tensor) -> Tensor:
        found: Tensor = call.func(image, grid, *call.args[2:], **call.kwargs)
        return found

    def surrogates(t: Values) -> list[Tensor]:
        image_t, grid_t = call.filled(t)[0][:2]
        moved = grid_t - grid
        parts = [s * moved[:, None, ..., d] for d, s in enumerate(slopes)]
        if len(t) == 2:
            parts += [(sample(image_t, grid) + sample(image_t, grid0)) / 2]
        return parts

    return run.graft(y, surrogates, z, x)


def _slopes(call: Call, image: Tensor, grid: Tensor, grid0: Tensor) -> list[Tensor]:
    """The slopes by the coordinates, (N, C, ...) each, that carry the change of the grid.

    They are changed one after the other, in one order and its reverse.
    """
    n, channels = image.shape[:2]
    # Each channel is a separate image here, so that the derivative by the grid is one for each.
    images = image.reshape(n * channels, 1, *image.shape[2:])

    coordinates = [
        [t[..., d].repeat_interleave(channels, 0) for d in range(grid.shape[-1])]
        for t in (grid, grid0)
    ]
    at, at0 = coordinates

    def along(d: int, others: list[Tensor]) -> Tensor:
        def f(t: Tensor) -> Tensor:
            g = torch.stack([*others[:d], t, *others[d + 1 :]], -1)
            found: Tensor = call.func(images, g, *call.args[2:], **call.kwargs)
            return found[:, 0]

        return slope(f, at[d], at0[d])

    found = [
        (along(d, [*at[:d], *at0[d:]]) + along(d, [*at0[:d], *at[d:]])) / 2 for d in range(len(at))
    ]
    return [s.reshape(n, channels, *s.shape[1:]) for s in found]
