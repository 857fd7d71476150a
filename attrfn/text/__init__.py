"""Language models: which part of a prompt drove which part of an answer.

Tensors in, tensors out: a *score* says how likely an answer is, a *game* what that score is when
parts of the prompt are removed. Both are model functions, which every method of attrfn explains.
"""

from attrfn.text._adapters import causal as causal
from attrfn.text._adapters import classifier as classifier
from attrfn.text._adapters import masked as masked
from attrfn.text._adapters import seq2seq as seq2seq
from attrfn.text._attribute import attribute as attribute
from attrfn.text._from_text import parts as parts
from attrfn.text._game import game as game
from attrfn.text._parts_type import Game as Game
from attrfn.text._parts_type import Parts as Parts
from attrfn.text._parts_type import TextAttribution as TextAttribution
from attrfn.text._prompts import chat_parts as chat_parts
from attrfn.text._prompts import documents as documents
from attrfn.text._removal import delete as delete
from attrfn.text._removal import embedding as embedding
from attrfn.text._removal import replace as replace
from attrfn.text._removal import template as template
from attrfn.text._removal import unattended as unattended
from attrfn.text._results import frame as frame
from attrfn.text._results import merge as merge
from attrfn.text._results import normalise as normalise
from attrfn.text._results import select as select
from attrfn.text._retrieval import leave_one_out as leave_one_out
from attrfn.text._retrieval import levels as levels
from attrfn.text._retrieval import retrieval as retrieval
from attrfn.text._saved import from_json as from_json
from attrfn.text._saved import load as load
from attrfn.text._saved import save as save
from attrfn.text._saved import to_json as to_json
from attrfn.text._scorer import runner_up as runner_up
from attrfn.text._scorer import scorer as scorer
