"""What a client says and hears, without any connection.

calls.py      what each method of a client comes to: requests, and what is made of their replies
pictures.py   files of pictures → requests in groups; replies → `ImageScore`s
tensors.py    tensors → requests in chunks; replies joined again
answers.py    what both check of a reply: that it can be read, is complete, and comes from the model it should
cache.py      scores that were had before
"""
