//! What an op costs in a step.
