"""Other derivatives for operations while a model runs: DeepLIFT, LRP and rules for ReLU."""
