"""Reports: pages and pictures on which a person judges an answer."""
