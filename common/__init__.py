# SPDX-License-Identifier: Apache-2.0
"""What benchmarks and backends share; imported before torch by every process of this suite."""

import os

# torch would import every installed vendor package when it is imported itself, and one that is
# broken would take all other devices, and the CPU, down with it. A backend imports its own. It is
# set whatever the user's environment says: 1 is torch's default and no request for a device
# (--backend is), and the processes that this one starts inherit it.
os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
