"""Systems that follow a training: the contract is in ``base.py``, each in a file of its own."""
