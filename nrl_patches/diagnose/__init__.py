"""Whether trainer and engine agree on a user's own model, with the patches off and on."""
