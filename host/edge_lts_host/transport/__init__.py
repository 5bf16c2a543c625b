"""Byte links to a board: argv and bytes in, bytes out. They know nothing of searches."""
