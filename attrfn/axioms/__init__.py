"""Axioms of attribution methods: pure functions that return each example's gap, (B,).

    gap = axiom(model_fn, inputs, method, *, target=None, ...)

A gap is 0 where the axiom holds for the example, in exact arithmetic. It measures one method on one
model at one input: a gap above rounding disproves the axiom, a gap of 0 proves nothing for other
inputs. Each function names the methods for which the axiom is a theorem.

Options of a method are bound with ``functools.partial``. With ``create_graph=True`` bound, gaps
are differentiable by ``.backward()``, as a penalty in training is; inside ``torch.func`` they
always are.
"""

from attrfn.axioms._models import implementation_invariance as implementation_invariance
from attrfn.axioms._models import linearity as linearity
from attrfn.axioms._models import scale_invariance as scale_invariance
from attrfn.axioms._rows import batch_independence as batch_independence
from attrfn.axioms._rows import sensitivity as sensitivity
from attrfn.axioms._sums import completeness as completeness
from attrfn.axioms._sums import conservation as conservation
from attrfn.axioms._sums import dummy as dummy
from attrfn.axioms._sums import symmetry as symmetry
