"""The words of other systems: which of our options each of their settings becomes, and why not."""
