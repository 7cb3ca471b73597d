"""How the result of each verb of `prism analyze` is shown: tables and figures, made from its JSON document alone."""
