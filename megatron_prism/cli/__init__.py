"""The `prism` command: thin verbs over the package. A verb imports heavy modules only when it needs them."""
