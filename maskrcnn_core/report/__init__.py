"""One HTML page about a label run, with everything in it: no file beside it, no network."""
