"""How fast a bundle is on this machine: numpy, Pillow and one engine, as on the device; never torch."""
