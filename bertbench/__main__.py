# SPDX-License-Identifier: Apache-2.0
"""``python -m bertbench VERB``."""

import sys

from bertbench.common.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
