"""``python -m mistralrs_cli`` is the command ``mistralrs``."""

import sys

from mistralrs_cli.app import main

sys.exit(main())
