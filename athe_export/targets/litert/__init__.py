"""TFLite graphs, run by LiteRT with XNNPACK."""
