"""``python -m ds4sci`` is the console script ``ds4sci``."""

from __future__ import annotations

from ds4sci.cli.main import main

if __name__ == "__main__":
    main()
