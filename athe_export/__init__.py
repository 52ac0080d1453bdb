"""athe-export: an adaptive vision transformer, from a PyTorch checkpoint to a verified int8 bundle."""

__version__ = "0.1.0"
