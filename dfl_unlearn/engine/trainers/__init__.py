"""Training iterations, one module each; the registry is in ``engine.config``."""
