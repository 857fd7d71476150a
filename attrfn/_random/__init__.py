"""The counter-based generator of :mod:`attrfn.random`, its keys and its draws."""
