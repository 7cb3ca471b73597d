"""The `prism` command: thin verbs over the package. Heavy imports wait until a verb needs them."""
