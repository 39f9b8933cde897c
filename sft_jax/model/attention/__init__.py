"""Attention over packed documents: a reference, one file per implementation, and the dispatch between them."""
