# SPDX-License-Identifier: Apache-2.0
"""A vendor-portable BERT benchmark suite. Importing it does not import torch."""

import os

# torch would import every installed vendor package when it is imported itself, and one that is
# broken would take all other devices, and the CPU, down with it. A backend imports its own. It is
# set whatever the user's environment says: 1 is torch's default and no request for a device
# (--backend is), and the processes that this one starts inherit it.
os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
