"""The host's side of a board: SSH, what is carried there and back, several boards at once. Imports no torch."""
