"""The SR zoo: seven tiny SR networks of our own that differ in what they get wrong.

networks.py   architectures and the discriminator
losses.py     what they are trained for, as pure functions
members.py    the table: which network is trained for what
train.py      training of one member, resumable step by step
store.py      the zoo folder on disk
model.py      a stored network as an `SRModel`
preview.py    their outputs side by side, to be looked at
"""
