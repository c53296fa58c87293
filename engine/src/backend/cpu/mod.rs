//! The CPU backend: plain twins as the reference, and a multithreaded version.
