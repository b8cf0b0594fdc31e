"""The web studio: edit a photo by its words in the browser."""
