"""``python -m stepmark``, the same as ``stepmark``."""

from stepmark.cli import main

main()
