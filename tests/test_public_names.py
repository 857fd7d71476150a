"""The public names, written out: a name that comes or goes does so here, and in the changelog."""

from __future__ import annotations

import ast
import importlib
import inspect
from types import ModuleType

import pytest

PUBLIC = {
    "attrfn": """
        CompileError Site Split UnsupportedOpError ablation_cam absolute activations
        at_layer at_neuron average chain compile completeness_delta contrast deconvolution
        deep_lift deep_lift_shap each_output eigen_cam ensemble feature_ablation
        feature_permutation feature_scores features grad_cam grad_cam_plus_plus gradient
        gradient_shap guided_backprop guided_grad_cam hires_cam input_x_gradient
        integrated_gradients integrated_hessians interactions internal_influence intervene
        kernel_shap layer_activation layer_cam layer_conductance layer_deep_lift
        layer_deep_lift_shap layer_feature_ablation layer_feature_permutation
        layer_gradient_shap layer_gradient_x_activation layer_integrated_gradients layer_lrp
        layouts lime lrp neuron_conductance neuron_deconvolution neuron_deep_lift
        neuron_deep_lift_shap neuron_feature_ablation neuron_gradient neuron_gradient_shap
        neuron_guided_backprop neuron_integrated_gradients noise_tunnel normalized occlusion
        over_baselines per_example pooled random relative_to rise rules saliency score_cam
        shapley_value_sampling shapley_values shared split surrogates with_rules xgrad_cam
    """,
    "attrfn.axioms": """
        batch_independence completeness conservation dummy implementation_invariance linearity
        scale_invariance sensitivity symmetry
    """,
    "attrfn.cli": """
        main
    """,
    "attrfn.data": """
        AUC Accuracy Attributions Loss Ray Top explain importance quantiles read to_pandas
        to_parquet top_k
    """,
    "attrfn.features": """
        Words patches superpixels words
    """,
    "attrfn.layouts": """
        channels_last frames padded tokens windows
    """,
    "attrfn.metrics": """
        Comparison Curve aopc compare completeness_delta complexity comprehensiveness deletion
        dummy_violations effective_complexity efficient_mprt faithfulness_correlation
        faithfulness_estimate infidelity input_invariance insertion local_lipschitz
        localization_auc model_parameter_randomization monotonicity pointing_game random_logit
        relative_input_stability relative_output_stability relative_representation_stability
        relevance_mass relevance_rank removal_curve road sensitivity_avg sensitivity_max
        sensitivity_n similarity sparseness sufficiency symmetric_relevance_gain top_k_intersection
    """,
    "attrfn.metrics.similarity": """
        cosine pearson spearman ssim
    """,
    "attrfn.programs": """
        Program load
    """,
    "attrfn.random": """
        as_key bernoulli bits fold_in key normal permutation randint split uniform
    """,
    "attrfn.robust": """
        Attempts MinParam attack_comparator fgsm min_param_perturbation pgd
    """,
    "attrfn.rules": """
        Leak LinearRule Rules alpha_beta attn_lrp composite conservation cp_lrp deconv epsilon
        epsilon_alpha2_beta1 epsilon_alpha2_beta1_flat epsilon_gamma_box epsilon_plus
        epsilon_plus_flat flat fold_batch_norm gamma guided identity rescale reveal_cancel
        w_square z_box z_plus
    """,
    "attrfn.surrogates": """
        constant exponential_kernel lasso linear ridge scikit_learn
    """,
    "attrfn.testing": """
        Additive ExampleModel Failure Finding Game MethodFailedError ModelReport additive
        baselines_for check_method check_model games inputs_for models parametrize_with_checks
        symmetric targets_for with_dummy
    """,
    "attrfn.text": """
        Game Parts TextAttribution attribute causal chat_parts classifier delete documents embedding
        frame from_json game leave_one_out levels load masked merge normalise parts replace
        retrieval runner_up save scorer select seq2seq template to_json unattended
    """,
    "attrfn.viz": """
        Html answer bar compare curves dependence image image_grid image_overlay passages report
        sanity strip text text_matrix time_series waterfall
    """,
}


def public(module: ModuleType) -> list[str]:
    """``__all__``, else what the source defines or passes on with ``import name as name``."""
    listed = getattr(module, "__all__", None)
    if listed is not None:
        return sorted(listed)
    found: set[str] = set()
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        if isinstance(node, ast.Assign):
            found |= {t.id for t in node.targets if isinstance(t, ast.Name)}
        if isinstance(node, ast.AnnAssign):
            found.add(ast.unparse(node.target))
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            found |= {a.name for a in node.names if a.asname == a.name}
    return sorted(name for name in found if not name.startswith("_"))


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names(name: str) -> None:
    module = importlib.import_module(name)
    assert public(module) == PUBLIC[name].split()
    assert all(hasattr(module, n) for n in public(module))
