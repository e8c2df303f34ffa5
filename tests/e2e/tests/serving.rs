//! What becomes of searches while servers and caches come and go.
