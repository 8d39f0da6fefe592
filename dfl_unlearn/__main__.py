"""``python -m dfl_unlearn`` is the same as ``dfl-unlearn``."""

from dfl_unlearn.cli import main

main()
