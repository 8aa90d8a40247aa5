"""The reference, made from the code whenever the pages are built."""
