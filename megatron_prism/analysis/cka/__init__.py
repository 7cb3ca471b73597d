"""Linear centred kernel alignment (CKA) between models, point by point through their layers."""
