"""``python -m ppgen`` is the command line, which ``torchrun -m ppgen`` starts in several processes."""

import sys

from ppgen.runs.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
