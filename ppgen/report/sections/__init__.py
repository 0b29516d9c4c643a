"""The sections of reports, a file each; a report's table of rows chooses from them."""
