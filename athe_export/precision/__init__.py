"""What int8 costs layer by layer, and which layers to keep float; one engine for every target, no torch."""
