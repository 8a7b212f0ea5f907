"""The commands, one family a module; :mod:`pushforward.cli` imports the one that is called."""
