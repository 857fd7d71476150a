"""Models: the module that a model function calls, and private copies of it."""
