"""Result tables on the terminal, report.html and report.json."""
