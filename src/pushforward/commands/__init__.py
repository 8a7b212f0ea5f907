"""The commands; :mod:`pushforward.cli` imports the module of the one that is called."""
