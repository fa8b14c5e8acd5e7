"""Model and images in, embeddings and logits out; the store on disk."""
