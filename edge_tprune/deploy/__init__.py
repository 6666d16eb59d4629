"""A bundle and a host name in, a board that measures and the profiles it sends back out: SSH, wheels, several boards at once.

May import: bundle. No torch; `remote` is sent to boards as one file.
"""
