//! The dashboards, a file each.

mod embedding;
mod operator;
mod overview;
mod search;
mod stores;

use crate::Dashboard;

pub fn all() -> &'static [Dashboard] {
    &[overview::OVERVIEW, search::SEARCH, embedding::EMBEDDING, stores::STORES, operator::OPERATOR]
}
