"""Random numbers as pure functions of a key: Philox 4x32-10 in plain tensor operations.

Word w of block c of a stream is word w of philox(counter=(tag, c, 0, 0), key), so element
i = 4 c + w of a draw depends on the key and on i alone: on no state, device, chunk or batch.
The tag keeps the streams of ``split``, ``fold_in`` and the draws apart. Use each key once:
two draws with one key are made of the same words.

Reference: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011,
https://doi.org/10.1145/2063384.2063405. Keys are split and folded as in the design of JAX,
https://docs.jax.dev/en/latest/jep/263-prng.html.
"""

from attrfn._random.draws import (
    bernoulli,
    bits,
    normal,
    permutation,
    randint,
    uniform,
)
from attrfn._random.keys import as_key, fold_in, key, split

__all__ = [
    "as_key",
    "bernoulli",
    "bits",
    "fold_in",
    "key",
    "normal",
    "permutation",
    "randint",
    "split",
    "uniform",
]
