//! What the tests on a cluster and the programs in it share.

pub mod load;
