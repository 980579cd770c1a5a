"""`python -m moeut`: the same as the command `moeut`."""

import sys

from moeut.cli import main

sys.exit(main())
