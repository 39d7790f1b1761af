"""The command ``mistralrs`` with a scripted model, as a program of its own."""

import sys

from mistralrs_cli.app import main
from tests.cli.fake import load_fake

if __name__ == "__main__":
    sys.exit(main(load=load_fake))
