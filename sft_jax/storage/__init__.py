"""Files: a Location on this machine or in a bucket, atomic writes, Orbax on object stores, GGUF headers."""
