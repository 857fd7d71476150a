"""The counter-based generator behind :mod:`attrfn.random`, and keys for copies of a batch."""
