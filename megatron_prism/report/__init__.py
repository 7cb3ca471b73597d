"""Tables, figures and one HTML page, made from receipts and the other files of artifacts."""
