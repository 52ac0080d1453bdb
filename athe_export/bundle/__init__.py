"""The bundle format: manifest, writer (staged, then renamed) and reader (fails closed). Standard library alone."""
