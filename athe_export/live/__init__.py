"""Images as they come, from a folder or a camera, classified on the device; never torch."""
