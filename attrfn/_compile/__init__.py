"""``attrfn.compile``: a whole attribution as one compiled graph."""
