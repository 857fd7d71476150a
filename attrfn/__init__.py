"""Functional, stateless attribution for PyTorch.

    attributions = method(model_fn, inputs, *, target=None, **options)

Gradients and paths: gradient, saliency, input_x_gradient, integrated_gradients, gradient_shap.
Rules: guided_backprop, deconvolution, deep_lift, deep_lift_shap, lrp (with attrfn.rules).
Perturbation: feature_ablation, occlusion, feature_permutation, rise.
Shapley values and LIME: shapley_values, shapley_value_sampling, kernel_shap, lime.
Interactions: interactions, integrated_hessians.
Layers and neurons: layer_..., neuron_..., internal_influence; of any method: at_layer, at_neuron.
Class activation maps: ..._cam, grad_cam_plus_plus.
From method to method: noise_tunnel, each_output, over_baselines, ensemble, average, pooled,
normalized, absolute, relative_to, chain.
What is bound to a model: shared, per_example.
Many layers in one pass: Site, activations, intervene.
Tools: contrast, with_rules, compile, split, completeness_delta, attrfn.features, attrfn.layouts.

See help(attrfn.integrated_gradients), and so for each.
"""

from attrfn import features as features
from attrfn import layouts as layouts
from attrfn import random as random
from attrfn import rules as rules
from attrfn import surrogates as surrogates
from attrfn._compile.compiled import CompileError as CompileError
from attrfn._compile.compiled import compile as compile
from attrfn._layers.at import at_layer as at_layer
from attrfn._layers.at import at_neuron as at_neuron
from attrfn._layers.intervene import activations as activations
from attrfn._layers.intervene import intervene as intervene
from attrfn._layers.sites import Site as Site
from attrfn._layers.split import Split as Split
from attrfn._layers.split import split as split
from attrfn._methods.ablation import feature_ablation as feature_ablation
from attrfn._methods.ablation import layer_feature_ablation as layer_feature_ablation
from attrfn._methods.ablation import neuron_feature_ablation as neuron_feature_ablation
from attrfn._methods.algebra import absolute as absolute
from attrfn._methods.algebra import average as average
from attrfn._methods.algebra import chain as chain
from attrfn._methods.algebra import normalized as normalized
from attrfn._methods.algebra import pooled as pooled
from attrfn._methods.algebra import relative_to as relative_to
from attrfn._methods.averages import ensemble as ensemble
from attrfn._methods.averages import over_baselines as over_baselines
from attrfn._methods.cam import eigen_cam as eigen_cam
from attrfn._methods.cam import grad_cam as grad_cam
from attrfn._methods.cam import grad_cam_plus_plus as grad_cam_plus_plus
from attrfn._methods.cam import hires_cam as hires_cam
from attrfn._methods.cam import layer_cam as layer_cam
from attrfn._methods.cam import xgrad_cam as xgrad_cam
from attrfn._methods.completeness import completeness_delta as completeness_delta
from attrfn._methods.conductance import internal_influence as internal_influence
from attrfn._methods.conductance import layer_conductance as layer_conductance
from attrfn._methods.conductance import neuron_conductance as neuron_conductance
from attrfn._methods.contrast import contrast as contrast
from attrfn._methods.deep_lift import deep_lift as deep_lift
from attrfn._methods.deep_lift import deep_lift_shap as deep_lift_shap
from attrfn._methods.deep_lift import layer_deep_lift as layer_deep_lift
from attrfn._methods.deep_lift import layer_deep_lift_shap as layer_deep_lift_shap
from attrfn._methods.deep_lift import neuron_deep_lift as neuron_deep_lift
from attrfn._methods.deep_lift import neuron_deep_lift_shap as neuron_deep_lift_shap
from attrfn._methods.each_output import each_output as each_output
from attrfn._methods.feature_scores import feature_scores as feature_scores
from attrfn._methods.gradient_shap import gradient_shap as gradient_shap
from attrfn._methods.gradient_shap import layer_gradient_shap as layer_gradient_shap
from attrfn._methods.gradient_shap import neuron_gradient_shap as neuron_gradient_shap
from attrfn._methods.gradients import gradient as gradient
from attrfn._methods.gradients import input_x_gradient as input_x_gradient
from attrfn._methods.gradients import layer_activation as layer_activation
from attrfn._methods.gradients import layer_gradient_x_activation as layer_gradient_x_activation
from attrfn._methods.gradients import neuron_gradient as neuron_gradient
from attrfn._methods.gradients import saliency as saliency
from attrfn._methods.guided import deconvolution as deconvolution
from attrfn._methods.guided import guided_backprop as guided_backprop
from attrfn._methods.guided import neuron_deconvolution as neuron_deconvolution
from attrfn._methods.guided import neuron_guided_backprop as neuron_guided_backprop
from attrfn._methods.guided_grad_cam import guided_grad_cam as guided_grad_cam
from attrfn._methods.integrated_gradients import integrated_gradients as integrated_gradients
from attrfn._methods.integrated_gradients import (
    layer_integrated_gradients as layer_integrated_gradients,
)
from attrfn._methods.integrated_gradients import (
    neuron_integrated_gradients as neuron_integrated_gradients,
)
from attrfn._methods.integrated_hessians import integrated_hessians as integrated_hessians
from attrfn._methods.interactions import interactions as interactions
from attrfn._methods.kernel_shap import kernel_shap as kernel_shap
from attrfn._methods.lime import lime as lime
from attrfn._methods.lrp import layer_lrp as layer_lrp
from attrfn._methods.lrp import lrp as lrp
from attrfn._methods.mask_cam import ablation_cam as ablation_cam
from attrfn._methods.mask_cam import score_cam as score_cam
from attrfn._methods.noise_tunnel import noise_tunnel as noise_tunnel
from attrfn._methods.occlusion import occlusion as occlusion
from attrfn._methods.permutation import feature_permutation as feature_permutation
from attrfn._methods.permutation import layer_feature_permutation as layer_feature_permutation
from attrfn._methods.rise import rise as rise
from attrfn._methods.shapley import shapley_value_sampling as shapley_value_sampling
from attrfn._methods.shapley import shapley_values as shapley_values
from attrfn._methods.with_rules import with_rules as with_rules
from attrfn._model.bound import per_example as per_example
from attrfn._model.bound import shared as shared
from attrfn._rules.errors import UnsupportedOpError as UnsupportedOpError

__version__ = "0.2.0"
