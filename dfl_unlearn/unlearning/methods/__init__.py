"""Methods that act on one model, one file each; see ``unlearning.local``."""
