"""`python -m zk0desk` is the same program as `zk0desk`."""

from zk0desk.cli import main

if __name__ == "__main__":
    main()
