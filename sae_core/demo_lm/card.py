"""The demo model's card: data, size, steps, held-out loss and the command that reproduces it."""


def write_card(*a, **k):
    pass
