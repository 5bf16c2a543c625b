"""One search shared by identical boards (`run --pool`): the search here, the measuring there.

    command -> supervisor -> {batches, agreement, crew} -> board -> session

The queue is dask's (extra `pool`): one worker per board, all of them threads of this process, so that nothing of it
runs on a board. docs/pool.md says what is promised.
"""
