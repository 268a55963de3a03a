"""`python -m zk0desk` is the same program as `zk0desk`."""

import sys

from zk0desk.cli import main

if __name__ == "__main__":
    sys.exit(main())
