"""Models split at a layer, and methods moved to layers and neurons."""
