"""Parts of HTML pages: the document around them, and interactive figures."""
