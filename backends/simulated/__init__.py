# SPDX-License-Identifier: Apache-2.0
"""An accelerator that does not exist, for tests and for trying the suite without hardware."""
