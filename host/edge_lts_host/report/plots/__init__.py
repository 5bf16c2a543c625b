"""Pictures of runs as PNG and SVG (matplotlib, extra `plots`).

style      colours, markers and lines that differ without colour; saving
frontier   members with intervals against each cost, baselines, knees; one run or several on shared axes
progress   hypervolume over time; temperature, clock and speed along a run
kinds      latency by kind of layer, from the cost model
gallery    which pictures a report or a comparison gets, and their names
"""
