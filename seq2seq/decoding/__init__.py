"""Turning step-wise distributions into output sequences: greedy, beam search, sampling."""
