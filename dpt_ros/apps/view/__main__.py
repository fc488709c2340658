# SPDX-License-Identifier: Apache-2.0
"""``python -m dpt_ros.apps.view`` is dpt_view."""

import sys

from dpt_ros.apps.view import main

sys.exit(main())
