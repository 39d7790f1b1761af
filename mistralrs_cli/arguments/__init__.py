"""From the words of the command line to what is to be done."""
