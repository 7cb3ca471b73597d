"""Tables, figures and one HTML page, made from receipts and the files beside them."""
