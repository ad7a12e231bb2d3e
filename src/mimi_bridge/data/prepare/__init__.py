"""`mimi-bridge prepare`: recordings of any source become a data set of rows with their teachers' features."""
