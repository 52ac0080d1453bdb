"""The networks: DeiT backbone, token scorers, head ranking, router, and their checkpoint. Needs torch."""
