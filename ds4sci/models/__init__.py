"""Complete models and their configs: structure model, language models, neural operators."""
