"""Training an ATHE checkpoint: `python -m athe_export.training`; torch, numpy, safetensors, PyYAML and Pillow suffice."""
