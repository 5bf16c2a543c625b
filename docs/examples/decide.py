"""From a search on this machine to a decision and a table, in one sitting: a notebook, cell by cell.

usage: python docs/examples/decide.py [BUDGET]      such as 5m (the default)

Needs `pip install "edge-lts[local]"`; with pandas installed it ends with data frames.
"""

# %% A search: it is waited for; with target="arm64" and wait=False it would go on on a board by itself.
import sys

from edge_lts_host import api

budget = sys.argv[1] if len(sys.argv) > 1 else "5m"
[run] = api.run(target="local", space="demo", budget=budget)
print(run.run_id, run.state)

# %% Its frontier: the JSON of `edge-lts report`.
[found] = api.report(run.run_id)["runs"]
members = found["frontier"]
for member in members[:3]:
    decode = member["objectives"]["decode_latency_s"]
    print(member["arch_id"], member["objectives"]["decoder_params"], f"{decode['median'] * 1e3:.2f} ms")

# %% A decision: the largest decoder that answers within twice the time of the fastest, and who comes next.
fastest_s = min(member["objectives"]["decode_latency_s"]["median"] for member in members)
decision = api.pick(run.run_id, limits={"decode_latency_s": 2 * fastest_s})
best = decision["best"]
print(
    "best:", best["arch_id"], best["objectives"]["decoder_params"], [one["arch_id"] for one in decision["runners_up"]]
)

# %% The same architecture wherever it was ever measured.
for board in api.query(best["arch_id"])["boards"]:
    print(board["board"], board["n_processes"], board["objectives"]["decode_latency_s"])

# %% A model to train.
api.export(best["arch_id"], "decided", run_id=run.run_id)

# %% Data frames, in one line each.
try:
    import pandas
except ImportError:
    print("pandas is not installed")
else:
    frontier = pandas.DataFrame(api.frontier(run.run_id))
    processes = pandas.DataFrame(api.measurements())
    print(frontier[["arch_id", "decoder_params", "decode_latency_s"]].to_string(index=False))
    print(processes.groupby("board")["decode_latency_s"].describe().to_string())
