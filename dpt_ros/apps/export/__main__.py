# SPDX-License-Identifier: Apache-2.0
"""``python -m dpt_ros.apps.export`` is dpt_export."""

import sys

from dpt_ros.apps.export import main

sys.exit(main())
