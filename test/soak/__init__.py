# SPDX-License-Identifier: Apache-2.0
"""The node under load for an hour, through transitions and over a bad network; run by hand.

    python test/soak/run.py --minutes 60          memory, latency, and every frame accounted for
    python test/soak/lifecycle.py --transitions 200
    sudo python test/soak/network.py              loss and a cut link between camera and node

Each ends with exit code 0 if what it promises holds, else with 1 and sentences. The quick tests
(``test_faults.py``) run short forms of the first two.
"""
