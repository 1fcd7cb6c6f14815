"""``python -m bench.compare BASE HEAD``, the same as ``stepmark compare``."""

import sys

from stepmark.compare.command import main

if __name__ == "__main__":
    sys.exit(main())
