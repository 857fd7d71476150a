"""Files that are whole or as they were before."""

from attrfn._torch.files import write_whole as write_whole
