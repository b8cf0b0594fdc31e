"""The web page: handlers that know no browser, and a thin layout over them."""
