"""How well a model does on held-out rows: the contract is in ``base.py``, one file per metric."""
