"""Files shared by several processes: atomic writes, locks, the cache folder."""
