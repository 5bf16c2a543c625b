"""The workstation's half of edge-lts: targets, transports, runs on disk, reports and the command line."""
