"""Who may do what. Every request passes the gate, whatever route it goes to, and every route gets the store as
whoever asks may see it: `policy` says which role an address needs, `identity` who asks, `gate` asks both, `pages` has
the login, `commands` what is said at the command line.
"""
