"""Attention over packed documents: the plain formula, one file per implementation, and the choice among them."""
