# SPDX-License-Identifier: Apache-2.0
"""``python -m dpt_ros.apps.train`` is dpt_train."""

from dpt_ros.apps.train import main

raise SystemExit(main())
