"""The command `cris-export`."""
