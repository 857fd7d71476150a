"""Language models: which part of a prompt drove which part of an answer.

Tensors in, tensors out: a *score* says how likely an answer is, a *game* what that score is when
parts of the prompt are removed. Both are model functions, which every method of attrfn explains.
"""

from attrfn.text._adapters import causal as causal
from attrfn.text._adapters import classifier as classifier
from attrfn.text._adapters import masked as masked
from attrfn.text._adapters import seq2seq as seq2seq
from attrfn.text._game import game as game
from attrfn.text._parts_type import Game as Game
from attrfn.text._parts_type import Parts as Parts
from attrfn.text._parts_type import TextAttribution as TextAttribution
from attrfn.text._removal import delete as delete
from attrfn.text._removal import embedding as embedding
from attrfn.text._removal import replace as replace
from attrfn.text._removal import template as template
from attrfn.text._removal import unattended as unattended
from attrfn.text._scorer import runner_up as runner_up
from attrfn.text._scorer import scorer as scorer
