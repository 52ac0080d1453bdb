"""What runs on the device: numpy, Pillow and one engine, never torch."""
