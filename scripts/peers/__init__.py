"""Other ways to run the same model, for scripts/bench_peers.py: a module a family."""
