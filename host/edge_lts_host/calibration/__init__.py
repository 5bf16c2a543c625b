"""Quality beyond size: tables of trained models, proxies fitted to them, and how well any proxy ranks them.

panel       a table of trained models            statistics  how well scores rank them, with intervals
fit         a proxy from few of its rows          from_table  `calibrate --labels`
catalogue   the proxies there are, in words       validation  `validate`
training    `calibrate --corpus`, with design, labels, shown; scores: proxies that need the model
"""
