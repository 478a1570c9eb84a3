"""Api: what can be asked of ngp and what it answers, typed, once for the control socket and for every later face.

`rows` and `status` are the answers. `reading` asks a running node, `books` the ledger of one that doesn't run, and
`acting` does what the operator wants done.
"""
