"""Run the command line: `python -m lungseg` is the command `lungseg`."""

from lungseg.cli import run

if __name__ == "__main__":
    run()
