# SPDX-License-Identifier: Apache-2.0
"""``python -m dpt_ros.apps.bag`` is dpt_bag."""

from dpt_ros.apps.bag import main

raise SystemExit(main())
