"""``python -m mistralrs_cli`` is the command ``mistralrs``."""

import sys

from mistralrs_cli.start import start

sys.exit(start())
