"""Pictures of attributions: matplotlib figures, coloured text and one HTML report.

No function opens a window, touches ``matplotlib.pyplot`` or changes what it is given; a figure is
shown by a notebook that has run ``%matplotlib inline``, or written by ``figure.savefig(path)``.
Importing this package needs torch only, drawing needs ``pip install "attrfn[viz]"``.

Everywhere red raises the explained output, blue lowers it and white is zero: colour scales of
signed attributions are symmetric around 0.
"""

from attrfn.viz._bars import bar as bar
from attrfn.viz._compare import compare as compare
from attrfn.viz._curves import curves as curves
from attrfn.viz._grid import image_grid as image_grid
from attrfn.viz._image import image_overlay as image_overlay
from attrfn.viz._report import report as report
from attrfn.viz._sanity import sanity as sanity
from attrfn.viz._series import time_series as time_series
from attrfn.viz._strip import strip as strip
from attrfn.viz._text import Html as Html
from attrfn.viz._text import text as text
