"""The embedded corpora: real speech and synthesis, laid out as the seven tasks' published corpora are."""
