"""The command line: options, one call, tables."""
