"""The page of an evaluation: tables, pictures and sounds in one file."""
