"""Training: state, optimizer, pmapped steps, checkpoints, logs and the loop.

Nothing here knows a detection method, a data set or a metric: the detector,
the batches and the functions that evaluate and draw arrive as arguments.
"""
