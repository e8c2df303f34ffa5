//! What the tests and benchmarks of the running server share.
