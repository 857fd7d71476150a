"""What the library needs of torch: derivatives, decomposed operations, precision, warnings."""
