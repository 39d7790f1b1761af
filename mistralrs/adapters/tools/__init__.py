"""The work of the ``mistralrs adapter`` commands: describing, converting and merging adapters."""
