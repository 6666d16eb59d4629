"""One file per command. Each parses its arguments, calls its room and prints; rooms are imported when their command runs."""
