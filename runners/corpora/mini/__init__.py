"""The embedded corpora: recorded and synthetic speech in the layouts of the seven tasks' published corpora."""
