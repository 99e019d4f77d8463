"""The only composition root: settings in, running parts out.

One module for each kind of command, so that a command imports no more than it runs.
"""
