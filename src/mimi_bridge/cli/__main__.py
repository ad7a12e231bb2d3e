"""`python -m mimi_bridge.cli`, as `mimi-bridge`."""

import sys

from .main import main

sys.exit(main())
