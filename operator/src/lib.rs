//! The operator: one `SearchDeployment` becomes the objects of a whole search platform.
//!
//! A reconciliation reads what there is (`watch`), checks the spec (`validate`), builds what is to be
//! (`components`), compares (`changes`), writes (`apply`) and says how far it got (`status`).

pub mod apply;
pub mod changes;
pub mod clean_up;
pub mod cli;
pub mod components;
pub mod controller;
pub mod crd;
pub mod error;
mod handover;
pub mod leader;
pub mod metrics;
pub mod patroni;
pub mod plan;
pub mod report;
pub mod rollout;
pub mod status;
pub mod trouble;
pub mod validate;
pub mod watch;
