"""HTTP to servers, and files of this user alone."""
