"""Did it learn? Answers, scores, statistics and verdicts. Knows nothing of training."""
