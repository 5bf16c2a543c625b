"""Proxies of quality: scores that need no training, and one that a few trained models calibrate.

`shape` and the closed forms need numpy at most; a module that needs the built model says [torch] in its first line.
"""
