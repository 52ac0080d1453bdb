"""The bundle format: manifest, writer (staged, then renamed) and reader (fails closed, standard library alone)."""
