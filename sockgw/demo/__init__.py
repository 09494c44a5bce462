"""A demonstration on one machine: origin, outer layer and inner layer."""
