"""Files of every kind into documents, and documents into pieces."""
