"""Many copies of a batch: folded, vmapped or in a loop, in chunks of bounded memory."""
