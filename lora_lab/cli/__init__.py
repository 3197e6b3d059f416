"""The command line: one file a verb, each light to import (``main`` says what a verb module has)."""
