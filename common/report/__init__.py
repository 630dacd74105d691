# SPDX-License-Identifier: Apache-2.0
"""The report: one HTML file that opens offline, and the same in Markdown, JSON and CSV.

    bertbench report results --output report

Everything in it comes from records, and everything from a record is escaped.
"""
