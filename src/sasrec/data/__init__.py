"""From a log to training batches: readers, filters, data sets, vocabulary, sequences, splits, sampling, batches."""
