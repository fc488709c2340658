# SPDX-License-Identifier: Apache-2.0
"""``python -m dpt_ros.apps.bag`` is dpt_bag."""

import sys

from dpt_ros.apps.bag import main

sys.exit(main())
