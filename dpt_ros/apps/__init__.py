# SPDX-License-Identifier: Apache-2.0
"""Command lines. Thin: parse, call, show progress."""
