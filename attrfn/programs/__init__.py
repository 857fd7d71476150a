"""Programs without their source: exported, compiled, scripted, and those of ONNX.

``load`` makes a model function of a file or of a loaded program. An exported program keeps the
names of the original modules, so that methods at layers and rules by name work; packages of
AOTInductor and models of ONNX only run forward, for perturbation methods.
"""

from attrfn.programs._exported import Program as Program
from attrfn.programs._load import load as load
