# SPDX-License-Identifier: Apache-2.0
"""``python -m dpt_ros.apps.evaluate`` is dpt_evaluate."""

import sys

from dpt_ros.apps.evaluate import main

sys.exit(main())
