"""Pictures of attributions: matplotlib figures, coloured text and one HTML report.

No function opens a window, touches ``matplotlib.pyplot`` or changes what it is given. A notebook
shows a figure that is the last value of a cell, and ``figure.savefig(path)`` writes it; with ``ax``
every plot is drawn in axes of yours. To import this package needs torch only; to draw needs
``pip install "attrfn[viz]"``.

Everywhere red raises the explained output, blue lowers it and white is zero: colour scales of
signed attributions are symmetric around 0. Colour-blind readers can tell all colours apart.
"""

from attrfn.viz._answer import answer as answer
from attrfn.viz._bars import bar as bar
from attrfn.viz._compare import compare as compare
from attrfn.viz._curves import curves as curves
from attrfn.viz._dependence import dependence as dependence
from attrfn.viz._grid import image_grid as image_grid
from attrfn.viz._image import image as image
from attrfn.viz._image import image_overlay as image_overlay
from attrfn.viz._passages import passages as passages
from attrfn.viz._report import report as report
from attrfn.viz._sanity import sanity as sanity
from attrfn.viz._series import time_series as time_series
from attrfn.viz._strip import strip as strip
from attrfn.viz._text import Html as Html
from attrfn.viz._text import text as text
from attrfn.viz._text_matrix import text_matrix as text_matrix
from attrfn.viz._waterfall import waterfall as waterfall
