"""``python -m sockgw`` is the ``sockgw`` command."""

import sys

from sockgw.cli import main

if __name__ == "__main__":
    sys.exit(main())
