"""Network unlearning protocols, one module each; found by their registry."""
