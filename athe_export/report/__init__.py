"""Reports for people: one HTML page a bundle, self-contained."""
