"""Many copies of a batch: folded, vmapped or looped over, in chunks of bounded memory."""
