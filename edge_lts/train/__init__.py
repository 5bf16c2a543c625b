"""[torch] Training small models: initial values, the loop, and the folder of a job. Values: `edge_lts.training`."""
