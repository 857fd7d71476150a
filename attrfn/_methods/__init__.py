"""The attribution methods, one family a file, with their layer and neuron forms."""
