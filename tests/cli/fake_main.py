"""The command ``mistralrs`` with a scripted model, as a program of its own."""

import sys

from mistralrs_cli.app import main
from tests.cli.fake import load_fake


def wait_for_the_terminal() -> None:
    """Gives the terminal of a test more than 2 s to say where the cursor is, after which a warning is shown."""
    from prompt_toolkit.renderer import Renderer

    Renderer.CPR_TIMEOUT = 60


if __name__ == "__main__":
    if sys.stdin is not None and sys.stdin.isatty():
        wait_for_the_terminal()
    sys.exit(main(load=load_fake))
