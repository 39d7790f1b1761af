"""The table of model selectors: subcommands of the command line and classes of ``Which``.

Responsible for the ways in which a user names a model. Opens no file, loads no model and imports no torch.
"""
