"""athe-export: an adaptive vision transformer, from a PyTorch checkpoint to a verified int8 bundle."""

import os

__version__ = "0.1.0"

# Since 1.29 onnxruntime starts a telemetry thread when it is imported, unless told beforehand not to. Whoever runs a bundle
# has not asked for one.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
