"""Every public callable with arguments that are right, of which one is replaced by an odd value."""

from __future__ import annotations

import functools
import inspect
import os
import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
import wrong_options
from models import NETS
from sklearn.linear_model import LinearRegression
from test_registry import public
from torch import nn

import attrfn
from attrfn import features, random, rules, surrogates, viz
from attrfn.text import TextAttribution

Given = dict[str, Any]


class Callee(NamedTuple):
    """A public callable: arguments that are right, and how it is called with them."""

    given: Callable[[], Given]
    call: Callable[[Given], Any]


def arguments(name: str) -> list[str]:
    """The arguments of a callable that are replaced."""
    return list(CALLEES[name].given())


def call(name: str, argument: str, value: Any) -> Any:
    """Call with one odd value."""
    callee = CALLEES[name]
    return callee.call({**callee.given(), argument: value})


def _method(name: str) -> Callee:
    method = getattr(attrfn, name)
    takes = inspect.signature(method).parameters

    def given() -> Given:
        row = wrong_options.row_of(name)
        right = wrong_options.given_to(row, method)
        defaults = {k: p.default for k, p in takes.items() if p.default is not p.empty}
        defaults.pop("progress", None)
        return {
            **{k: defaults.get(k) for k in takes if k != "progress"},
            **defaults,
            **_only(takes, right),
        }

    def run(given: Given) -> Any:
        given = dict(given)
        first = [given.pop(k) for k in ("model_fn", "inputs", "attributions") if k in given]
        return method(*first, **given)

    return Callee(given, run)


def _only(takes: Any, given: Given) -> Given:
    return {name: value for name, value in given.items() if name in takes}


def _plain(function: Callable[..., Any], **given: Any) -> Callee:
    return Callee(lambda: dict(given), lambda given: _spread(function, given))


def _spread(function: Callable[..., Any], given: Given) -> Any:
    found = inspect.signature(function).parameters.values()
    first = [p.name for p in found if p.kind is p.POSITIONAL_ONLY]
    return function(
        *[given[k] for k in first], **{k: v for k, v in given.items() if k not in first}
    )


def _net() -> tuple[nn.Module, torch.Tensor]:
    return NETS["mlp"].build(), NETS["mlp"].inputs()


def _at_layer(given: Given) -> Any:
    model, x = _net()
    return attrfn.at_layer(**given)(model, x, target=0)


def _at_neuron(given: Given) -> Any:
    model, x = _net()
    return attrfn.at_neuron(**given)(model, x)


def _noise_tunnel(given: Given) -> Any:
    model, x = _net()
    return attrfn.noise_tunnel(**given)(model, x, target=0, baselines=NETS["mlp"].pool[:1])


def _split(given: Given) -> Any:
    head, tail = attrfn.split(**{"model": _net()[0], **given})
    x = _net()[1]
    return tail(head(x), x)


def _with_rules(given: Given) -> Any:
    return attrfn.gradient(attrfn.with_rules(**given), _net()[1], target=0)


def _compile(given: Given) -> Any:
    return attrfn.compile(**given)


def _lrp_by(rule: Callable[..., Any], given: Given) -> Any:
    model, x = _net()
    return attrfn.lrp(model, x, target=0, rules=rule(**given))


def _square_by(rule: Callable[..., Any], given: Given) -> Any:
    """The rule of identities stands between equal shapes alone."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh()).double()
    return attrfn.lrp(model, _net()[1], target=0, rules=rule(**given))


def _first_by(rule: Callable[..., Any], given: Given) -> Any:
    model, x = _net()
    return attrfn.lrp(model, x, target=0, rules=rules.composite(first=rule(**given)))


def _gradient_by(rule: Callable[..., Any], given: Given) -> Any:
    model, x = _net()
    return attrfn.gradient(attrfn.with_rules(model, rule(**given)), x, target=0)


def _explained(name: str, make: Callable[..., Any], given: Given) -> Any:
    f = lambda x: x[:, 0] * x[:, 1] + x[:, 2]  # noqa: E731
    x = torch.tensor([[1.0, 2.0, 3.0]])
    return attrfn.lime(f, x, n_samples=4, **{name: make(**given)})


def _rules() -> dict[str, Callee]:
    def by(run: Callable[..., Any], name: str, **given: Any) -> Callee:
        rule = getattr(rules, name)
        return Callee(lambda: dict(given), functools.partial(run, rule))

    one = {"epsilon": 1e-6}
    box = {"low": -4.0, "high": 4.0}
    folded = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).eval()
    model, x = _net()
    return {
        "rules.alpha_beta": by(_lrp_by, "alpha_beta", alpha=2.0, beta=1.0, **one),
        "rules.gamma": by(_lrp_by, "gamma", gamma=0.25, **one),
        **{
            f"rules.{name}": by(_lrp_by, name, **one)
            for name in (
                *("attn_lrp", "cp_lrp", "epsilon", "epsilon_alpha2_beta1"),
                *("epsilon_alpha2_beta1_flat", "epsilon_plus", "epsilon_plus_flat"),
                "z_plus",
            )
        },
        "rules.identity": by(_square_by, "identity", **one),
        "rules.epsilon_gamma_box": by(_lrp_by, "epsilon_gamma_box", **box, **one, gamma=0.25),
        "rules.flat": by(_first_by, "flat", **one),
        "rules.w_square": by(_first_by, "w_square", **one),
        "rules.z_box": by(_first_by, "z_box", **box, **one),
        "rules.composite": by(
            _lrp_by,
            "composite",
            **{"dense": None, "conv": None, "first": None, "names": None, "softmax": "derivative"},
        ),
        "rules.rescale": by(_gradient_by, "rescale", baselines=None),
        "rules.reveal_cancel": by(_gradient_by, "reveal_cancel", baselines=None),
        "rules.conservation": _plain(
            rules.conservation, model_fn=model, inputs=x, target=0, rules=None
        ),
        "rules.fold_batch_norm": _plain(
            rules.fold_batch_norm, model=folded, pairs=None, params=None
        ),
    }


def _surrogates() -> dict[str, Callee]:
    def by(option: str, name: str, **given: Any) -> Callee:
        make = getattr(surrogates, name)
        return Callee(lambda: dict(given), functools.partial(_explained, option, make))

    return {
        "surrogates.exponential_kernel": by(
            "similarity", "exponential_kernel", distance="cosine", width=1.0
        ),
        "surrogates.lasso": by("surrogate", "lasso", alpha=0.01),
        "surrogates.ridge": by("surrogate", "ridge", alpha=1.0),
        "surrogates.scikit_learn": by("surrogate", "scikit_learn", estimator=LinearRegression()),
    }


def _randoms() -> dict[str, Callee]:
    draw = {"key": 0, "shape": (2,), "device": None}
    return {
        "random.as_key": _plain(random.as_key, key=0, device=None),
        "random.key": _plain(random.key, seed=0, device=None),
        "random.split": _plain(random.split, key=0, n=2),
        "random.fold_in": _plain(random.fold_in, key=0, data=1),
        "random.bits": _plain(random.bits, **draw),
        "random.uniform": _plain(
            random.uniform, **draw, dtype=torch.float32, minval=0.0, maxval=1.0
        ),
        "random.normal": _plain(random.normal, **draw, dtype=torch.float32),
        "random.bernoulli": _plain(random.bernoulli, p=0.5, **draw),
        "random.randint": _plain(random.randint, high=3, **draw),
        "random.permutation": _plain(random.permutation, key=0, n=3, device=None),
    }


def _features() -> dict[str, Callee]:
    return {
        "features.patches": _plain(features.patches, height=4, width=6, size=2),
        "features.superpixels": _plain(
            features.superpixels, image=torch.ones(3, 8, 8), n=4, compactness=1.0
        ),
        "features.words": _plain(features.words, tokens=["a", "##b"]),
    }


def _pictures() -> dict[str, Callee]:
    rows, names = np.linspace(-1, 1, 12).reshape(3, 4), ["a", "b", "c", "d"]
    images, maps = np.ones((2, 3, 4, 4)), {"a": np.ones((2, 4, 4))}
    spans, two = torch.tensor([[0, 1], [2, 3]]), torch.ones(2)
    result = TextAttribution(two[None], two, two[:1], None, ("a", "b"), ("c",), spans)
    return {
        "viz.bar": _picture(
            viz.bar,
            **{"attributions": rows, "names": names, "top": 10, "error": "stderr", "values": None},
            **{"rest": True, "signed": False, "title": "", "xlabel": None, "ax": None},
        ),
        "viz.dependence": _picture(
            viz.dependence,
            **{"attributions": rows, "values": rows, "names": names, "feature": "a"},
            **{"colour": "b", "cmap": "viridis", "title": "", "ylabel": None, "ax": None},
        ),
        "viz.image_grid": _picture(
            viz.image_grid,
            **{"images": images, "attributions": maps, "titles": None, "notes": None, "title": ""},
            **{"outlier_percentile": 99.0, "cmap": "RdBu_r", "original": True, "outline": True},
            **{"overlay": False, "mean": None, "std": None, "ax": None},
        ),
        "viz.image": _picture(
            viz.image,
            **{"image": images[0], "attribution": np.ones((4, 4)), "alpha": 0.9, "sign": "all"},
            **{"background": None, "smooth": True, "mean": None, "std": None, "ax": None},
            **{"outlier_percentile": 99.0, "cmap": None, "title": ""},
        ),
        "viz.strip": _picture(
            viz.strip,
            **{"attributions": rows, "values": rows, "names": names, "top": 10},
            **{"cmap": "viridis", "title": "", "xlabel": "attribution"},
        ),
        "viz.time_series": _picture(
            viz.time_series,
            **{"attribution": rows, "series": rows, "times": None, "names": None},
            **{"outlier_percentile": 99.0, "cmap": "RdBu_r", "title": "", "xlabel": "step"},
        ),
        "viz.waterfall": _picture(
            viz.waterfall,
            **{"attributions": rows[0], "names": names, "start": 0.0, "end": 1.0, "values": None},
            **{"top": 10, "title": "", "xlabel": "output", "ax": None},
        ),
        "viz.text": _plain(
            viz.text,
            **{"words": ["a", "b"], "attributions": np.array([1.0, -1.0]), "labels": None},
            **{"separator": " ", "title": ""},
        ),
        "viz.text_matrix": _plain(viz.text_matrix, result=result, title=""),
        "viz.answer": _plain(viz.answer, result=result, prompt="a b", title=""),
        "viz.passages": _plain(viz.passages, result=result, order="rank", top=None, title=""),
        "viz.report": Callee(_of_report, _report),
    }


def _picture(function: Callable[..., Any], **given: Any) -> Callee:
    def run(given: Given) -> None:
        import matplotlib.pyplot as plt

        try:
            figure = function(**given)
            figure.canvas.draw()
        finally:
            plt.close("all")

    return Callee(lambda: dict(given), run)


def _of_report() -> Given:
    return {"path": "report.html", "title": "", "figures": None, "tables": None, "text": ""}


def _report(given: Given) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        path = given["path"]
        if isinstance(path, str) and path:
            given["path"] = os.path.join(folder, path)
        return viz.report(given.pop("path"), **given)


ALGEBRA: dict[str, Given] = {
    **{name: {"method": attrfn.input_x_gradient} for name in wrong_options.ALGEBRA},
    "each_output": {"method": attrfn.gradient, "n": None, "chunk_size": "auto"},
    "over_baselines": {"method": attrfn.deep_lift, "reduce": "mean", "chunk_size": "auto"},
    "ensemble": {"method": attrfn.gradient, "reduce": "mean", "stacked": False},
    "average": {"weights": None},
    "relative_to": {"method": attrfn.gradient, "reference": attrfn.saliency},
    "normalized": {"method": attrfn.gradient, "how": "max"},
    "pooled": {"method": attrfn.gradient, "dims": 1, "how": "sum"},
    "contrast": {"a": 1, "b": 0},
}


def _of_algebra(name: str, given: Given) -> Any:
    model, x = _net()
    if name == "contrast":
        return attrfn.gradient(model, x, target=attrfn.contrast(**given))
    methods = (attrfn.gradient, attrfn.saliency) if name == "average" else ()
    made = getattr(attrfn, name)(*methods, **given)
    options: Given = {} if name == "each_output" else {"target": 0}
    if name == "over_baselines":
        options["baselines"] = NETS["mlp"].pool
    return made([model, model] if name == "ensemble" else model, x, **options)


def _at_site(given: Given) -> Any:
    return attrfn.activations(_net()[0], [attrfn.Site(**given)])(_net()[1])


def _activations(given: Given) -> Any:
    return attrfn.activations(**given)(_net()[1])


def _intervene(given: Given) -> Any:
    return attrfn.intervene(**given)(_net()[1])


def _bound(mark: Callable[..., Any], given: Given) -> Any:
    model, x = _net()
    given = {"value": torch.ones(len(x), dtype=x.dtype), **given}
    bound = functools.partial(lambda x, scale: model(x) * scale.reshape(-1, 1)[:1], scale=None)
    return attrfn.gradient(functools.partial(bound, scale=mark(**given)), x, target=0)


def _made() -> dict[str, Callee]:
    where = {"layer": "mid", "at": "output", "call": 0}
    model = _net()[0]
    tunnel = {
        **{"method": attrfn.input_x_gradient, "kind": "smoothgrad", "n_samples": 2, "stdevs": 0.1},
        **{"key": 0, "chunk_size": "auto", "draw_baselines": False},
    }
    by = {name: functools.partial(_of_algebra, name) for name in wrong_options.ALGEBRA}
    return {
        **{name: Callee(lambda k=name: dict(ALGEBRA[k]), run) for name, run in by.items()},
        "at_layer": Callee(lambda: {"method": attrfn.gradient, **where}, _at_layer),
        "at_neuron": Callee(lambda: {"method": attrfn.gradient, "neuron": 2, **where}, _at_neuron),
        "noise_tunnel": Callee(lambda: dict(tunnel), _noise_tunnel),
        "split": Callee(lambda: {"model": model, **where, "frozen": False}, _split),
        "Site": Callee(lambda: dict(where), _at_site),
        "activations": Callee(
            lambda: {"model": model, "sites": ["mid"], "frozen": False}, _activations
        ),
        "intervene": Callee(
            lambda: {"model": model, "edits": {"mid": lambda a, seen: 2 * a}, "frozen": False},
            _intervene,
        ),
        "shared": Callee(
            lambda: {"value": torch.ones(3)}, functools.partial(_bound, attrfn.shared)
        ),
        "per_example": Callee(
            lambda: {"value": torch.ones(len(_net()[1])), "dim": 0},
            functools.partial(_bound, attrfn.per_example),
        ),
        "with_rules": Callee(lambda: {"model_fn": model, "rules": rules.rescale()}, _with_rules),
        "compile": Callee(
            lambda: {
                **{"method": attrfn.gradient, "model_fn": model, "backend": "eager"},
                **{"mode": None, "dynamic": None},
            },
            _compile,
        ),
    }


def _all() -> dict[str, Callee]:
    made = _made()
    methods = sorted(public() - made.keys() - {"Split"})
    return {
        **{name: _method(name) for name in methods},
        **made,
        **_rules(),
        **_surrogates(),
        **_randoms(),
        **_features(),
        **_pictures(),
    }


CALLEES = _all()
