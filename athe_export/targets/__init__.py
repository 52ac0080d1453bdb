"""One package per deployment target; targets never import each other."""
