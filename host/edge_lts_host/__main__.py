"""`python -m edge_lts_host` and the `edge-lts` script."""

from __future__ import annotations

import sys

from edge_lts_host.cli import main

if __name__ == "__main__":
    sys.exit(main())
