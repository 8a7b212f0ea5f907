"""Which bytes come in: files, pipes, compression, and the kinds of tables that are not delimited text."""
