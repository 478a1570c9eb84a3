"""`python -m ngp`: the same as the command `ngp`."""

from ngp.cli import main

if __name__ == "__main__":
    main()
