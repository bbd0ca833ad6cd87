"""Memory and communication of a run on a given machine, before it starts."""
