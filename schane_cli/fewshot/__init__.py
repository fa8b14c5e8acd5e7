"""Episodes, classifiers and their scores."""
