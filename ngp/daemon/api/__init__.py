"""Api: the questions that ngp answers, with typed answers, once for the control socket and any later interface.

`rows` and `status` define the answers. `reading` answers for a running node, `books` from the ledger of a node that
doesn't run, and `acting` does what the operator asks for.
"""
