"""Sound: files of any kind read and written, made by espeak-ng, drawn."""
