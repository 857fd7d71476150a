"""attrfn: functional, stateless attribution for PyTorch."""

from attrfn import random as random
from attrfn._core.split import Split as Split
from attrfn._core.split import split as split
from attrfn._forms.at import at_layer as at_layer
from attrfn._forms.at import at_neuron as at_neuron
from attrfn._forms.cam import eigen_cam as eigen_cam
from attrfn._forms.cam import grad_cam as grad_cam
from attrfn._forms.cam import grad_cam_plus_plus as grad_cam_plus_plus
from attrfn._forms.cam import hires_cam as hires_cam
from attrfn._forms.cam import layer_cam as layer_cam
from attrfn._forms.cam import xgrad_cam as xgrad_cam
from attrfn._forms.conductance import internal_influence as internal_influence
from attrfn._forms.conductance import layer_conductance as layer_conductance
from attrfn._forms.conductance import neuron_conductance as neuron_conductance
from attrfn._forms.layer import layer_activation as layer_activation
from attrfn._forms.layer import layer_gradient_shap as layer_gradient_shap
from attrfn._forms.layer import layer_gradient_x_activation as layer_gradient_x_activation
from attrfn._forms.layer import layer_integrated_gradients as layer_integrated_gradients
from attrfn._forms.neuron import neuron_gradient as neuron_gradient
from attrfn._forms.neuron import neuron_gradient_shap as neuron_gradient_shap
from attrfn._forms.neuron import neuron_integrated_gradients as neuron_integrated_gradients
from attrfn._methods.gradient import gradient as gradient
from attrfn._methods.gradient import input_x_gradient as input_x_gradient
from attrfn._methods.gradient import saliency as saliency
from attrfn._methods.integrated import completeness_delta as completeness_delta
from attrfn._methods.integrated import gradient_shap as gradient_shap
from attrfn._methods.integrated import integrated_gradients as integrated_gradients
from attrfn._methods.noise import noise_tunnel as noise_tunnel

__version__ = "0.1.0"
