"""Files that several processes share: atomic writes, locks, cache folders."""
