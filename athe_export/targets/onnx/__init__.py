"""The ONNX Runtime target: export, simplify, quantize, each a function from graph to graph that checks itself."""
