"""Metrics of attributions: pure functions that return one number per example.

A metric has one of three signatures:

* ``metric(attributions, ...)``: statistics of attributions, and localisation in a mask;
* ``metric(model_fn, inputs, attributions, ...)``: what the model says when features go;
* ``metric(model_fn, inputs, method, ...)``: explains again, at other inputs or of other models.

What is undefined for an example is nan. Nothing is normalised, rectified or pooled unless an option
says so. ``metric.better`` is ``"higher"``, ``"lower"`` or None. Options of a method are bound with
``functools.partial``.
"""

from attrfn import completeness_delta as completeness_delta
from attrfn.metrics import similarity as similarity
from attrfn.metrics._areas import aopc as aopc
from attrfn.metrics._areas import deletion as deletion
from attrfn.metrics._areas import insertion as insertion
from attrfn.metrics._areas import symmetric_relevance_gain as symmetric_relevance_gain
from attrfn.metrics._compare import Comparison as Comparison
from attrfn.metrics._compare import compare as compare
from attrfn.metrics._fractions import comprehensiveness as comprehensiveness
from attrfn.metrics._fractions import sufficiency as sufficiency
from attrfn.metrics._infidelity import infidelity as infidelity
from attrfn.metrics._localization import localization_auc as localization_auc
from attrfn.metrics._localization import pointing_game as pointing_game
from attrfn.metrics._localization import relevance_mass as relevance_mass
from attrfn.metrics._localization import relevance_rank as relevance_rank
from attrfn.metrics._localization import top_k_intersection as top_k_intersection
from attrfn.metrics._randomization import efficient_mprt as efficient_mprt
from attrfn.metrics._randomization import (
    model_parameter_randomization as model_parameter_randomization,
)
from attrfn.metrics._removal import Curve as Curve
from attrfn.metrics._removal import removal_curve as removal_curve
from attrfn.metrics._road import road as road
from attrfn.metrics._sanity import input_invariance as input_invariance
from attrfn.metrics._sanity import random_logit as random_logit
from attrfn.metrics._sensitivity import local_lipschitz as local_lipschitz
from attrfn.metrics._sensitivity import sensitivity_avg as sensitivity_avg
from attrfn.metrics._sensitivity import sensitivity_max as sensitivity_max
from attrfn.metrics._singles import dummy_violations as dummy_violations
from attrfn.metrics._singles import effective_complexity as effective_complexity
from attrfn.metrics._singles import faithfulness_estimate as faithfulness_estimate
from attrfn.metrics._singles import monotonicity as monotonicity
from attrfn.metrics._stability import relative_input_stability as relative_input_stability
from attrfn.metrics._stability import relative_output_stability as relative_output_stability
from attrfn.metrics._stability import (
    relative_representation_stability as relative_representation_stability,
)
from attrfn.metrics._statistics import complexity as complexity
from attrfn.metrics._statistics import sparseness as sparseness
from attrfn.metrics._subsets import faithfulness_correlation as faithfulness_correlation
from attrfn.metrics._subsets import sensitivity_n as sensitivity_n
