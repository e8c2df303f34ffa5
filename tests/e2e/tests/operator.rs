//! The operator itself is killed, frozen, upgraded.
