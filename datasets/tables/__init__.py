"""Tables: read from files, described by a schema, divided, dequantized, written."""
