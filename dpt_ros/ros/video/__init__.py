# SPDX-License-Identifier: Apache-2.0
"""Video: packets of H.264, H.265, AV1 and VP9 to pictures, and back for the simulated camera."""
