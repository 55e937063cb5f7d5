"""Who watches a training: the contract is in ``base.py``, each watcher in a file of its own."""
