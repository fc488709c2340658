# SPDX-License-Identifier: Apache-2.0
"""``python -m dpt_ros.apps.doctor`` is dpt_doctor."""

import sys

from dpt_ros.apps.doctor import main

sys.exit(main())
