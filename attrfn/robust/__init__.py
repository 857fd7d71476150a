"""Attacks: small changes of the inputs that change what a model says, as pure functions.

:func:`fgsm` and :func:`pgd` return changed inputs, one for each example;
:func:`min_param_perturbation` asks how strong an attack has to be, :func:`attack_comparator` what
several attacks do to a number of the outputs. Any function of inputs can be an attack.
"""

from attrfn.robust._compare import Attempts as Attempts
from attrfn.robust._compare import attack_comparator as attack_comparator
from attrfn.robust._fgsm import fgsm as fgsm
from attrfn.robust._pgd import pgd as pgd
from attrfn.robust._search import MinParam as MinParam
from attrfn.robust._search import min_param_perturbation as min_param_perturbation
