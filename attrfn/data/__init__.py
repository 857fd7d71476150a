"""Data sets: any method over all examples, in memory that does not grow and without loss.

``explain`` takes a method, a model and a data set, and returns attributions, a running
statistic of them, or a folder of shards that ``read`` opens. A call that was interrupted or
killed goes on where it stopped, and several processes may share it. ``importance`` says what a
metric of the whole data set owes to each feature.
"""

from attrfn.data._engines import Ray as Ray
from attrfn.data._explain import explain as explain
from attrfn.data._importance import importance as importance
from attrfn.data._metrics import AUC as AUC
from attrfn.data._metrics import Accuracy as Accuracy
from attrfn.data._metrics import Loss as Loss
from attrfn.data._read import Attributions as Attributions
from attrfn.data._read import read as read
from attrfn.data._reduce import Top as Top
from attrfn.data._reduce import top_k as top_k
from attrfn.data._sketch import quantiles as quantiles
from attrfn.data._tables import to_pandas as to_pandas
from attrfn.data._tables import to_parquet as to_parquet
