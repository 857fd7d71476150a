"""Models: the module behind a model function, and private copies of it."""
