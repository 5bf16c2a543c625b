"""An index over all ledgers on this machine: what answers over a million measurements in seconds.

    lines.py     a line of a ledger to the numbers that are indexed, without reading its samples
    columns.py   those numbers as numpy columns; a run's usual speed, for all of its processes at once
    database.py  the columns of each run in one sqlite file, which may be deleted at any time
    build.py     what is new in the ledgers into the database
    boards.py    runs on one kind of board that measured alike, taken together; their frontiers
    query.py     one architecture on every board that measured it
    tabular.py   everything as one checksummed file, and back

    asked.py     the questions, each one call

The ledgers stay the only truth: nothing is stored here that they do not hold, and whatever does not fit them any more
is read again.
"""
