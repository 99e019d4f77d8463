"""The commands: parse, call app, print, exit code.

Their modules are imported at every start, so that help, completion and wrong usage are quick; what
a command runs is imported when it runs.
"""
