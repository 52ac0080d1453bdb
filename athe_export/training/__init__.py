"""Training an ATHE checkpoint. Runs on torch, numpy, safetensors, PyYAML and Pillow alone: python -m athe_export.training."""
