"""The tools of the documentation: the reference from the code, the site's pages, the words."""
