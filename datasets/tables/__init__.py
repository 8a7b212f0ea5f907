"""Tables: reading, schema, splits, dequantization, writing."""
