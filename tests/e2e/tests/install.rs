//! From nothing to the first right search.

use crate::support::{Stack, figure};

#[tokio::test]
async fn the_readmes_commands_bring_up_a_stack_that_finds_what_is_meant() {
    let (_stack, installed) = Stack::get().await;
    let found = installed.output;
    assert!(found.contains("\"hits\":[{\"id\":"), "{found}");
    figure(&format!(
        "installation: first right search after {:.1} s, every pod ready after {:.1} s",
        installed.first_search.as_secs_f64(),
        installed.whole.as_secs_f64(),
    ));
}
