"""What crosses the border of the process: files, rows, templates, the web, terminals, plug-ins."""
