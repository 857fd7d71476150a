"""Checks for your own attribution method and your own model (extra ``testing``: hypothesis).

* :func:`check_method` runs a method over random models: rows alone, vmap, derivatives, compile,
  pytrees, types, chunks, purity, threads, exceptions, keys, and the axioms that it should have.
* :func:`parametrize_with_checks` makes one pytest test of each of these checks.
* :func:`check_model` tells whether a model is fit for attribution, as a table.
* Strategies of hypothesis: :func:`models`, :func:`inputs_for`, :func:`targets_for`,
  :func:`baselines_for`, and models whose right attributions are known: :func:`games`,
  :func:`additive`, :func:`symmetric`, :func:`with_dummy`.
"""

from attrfn.testing._known import Additive as Additive
from attrfn.testing._known import Game as Game
from attrfn.testing._model_report import Finding as Finding
from attrfn.testing._model_report import ModelReport as ModelReport
from attrfn.testing._models import ExampleModel as ExampleModel
from attrfn.testing._of_model import check_model as check_model
from attrfn.testing._run import Failure as Failure
from attrfn.testing._run import MethodFailedError as MethodFailedError
from attrfn.testing._run import check_method as check_method
from attrfn.testing._run import parametrize_with_checks as parametrize_with_checks
from attrfn.testing._strategies import additive as additive
from attrfn.testing._strategies import baselines_for as baselines_for
from attrfn.testing._strategies import games as games
from attrfn.testing._strategies import inputs_for as inputs_for
from attrfn.testing._strategies import models as models
from attrfn.testing._strategies import symmetric as symmetric
from attrfn.testing._strategies import targets_for as targets_for
from attrfn.testing._strategies import with_dummy as with_dummy
