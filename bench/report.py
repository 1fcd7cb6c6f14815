"""``python -m bench.report [RUN ...] [-o reports/] [--results results]``."""

import sys

from stepmark.report import main

if __name__ == "__main__":
    sys.exit(main())
