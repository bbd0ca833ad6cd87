"""The command line ``ds4sci``: one module per command group. Commands parse, call and print."""
