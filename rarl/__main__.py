"""`python -m rarl`: the command `rarl`."""

from rarl.cli import main

main()
