"""The table of model selectors: subcommands of the command line and classes of ``Which``.

Responsible for the ways in which a user names a model. Opens no file but an ordering, loads no model, imports no torch.
"""
