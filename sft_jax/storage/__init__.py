"""Where files live: directories and buckets, atomic writes, Orbax on object stores."""
