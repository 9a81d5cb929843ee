"""What people run: the command line, SUPERB tasks through s3prl, the batch runner, corpora, and the report."""
