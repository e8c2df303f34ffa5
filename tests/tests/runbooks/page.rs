//! A page and its commands.

use std::path::PathBuf;
use std::process::Stdio;

use tokio::process::Command;
use tokio::time::timeout;

/// What the commands of the pages may use.
pub type Variables = Vec<(&'static str, String)>;

/// To be followed, or its test does nothing.
#[must_use]
pub struct Page {
    name: String,
    text: String,
}

pub fn folder() -> PathBuf {
    sextant_tests::repository("docs/runbooks")
}

impl Page {
    pub fn read(test: &str) -> Self {
        let name = test.replace('_', "-");
        let text = std::fs::read_to_string(folder().join(format!("{name}.md"))).unwrap();
        Self { name, text }
    }

    /// Runs the commands in their order, each block in a shell of its own that knows the variables
    /// which the page names and stops at the first failure.
    pub async fn follow(self, shell: impl Fn() -> Command, variables: Variables) {
        let blocks = blocks(&self.text);
        assert!(!blocks.is_empty(), "{} has no commands", self.name);
        let named = |name: &str| self.text.contains(&format!("`{name}`"));
        for block in blocks {
            let known = variables.iter().filter(|(name, _)| named(name));
            run(&self.name, shell(), &block, known.cloned()).await;
        }
    }
}

/// Runs a script; its output.
pub async fn run(
    what: &str,
    mut shell: Command,
    script: &str,
    variables: impl IntoIterator<Item = (&'static str, String)>,
) -> String {
    shell.args(["-euo", "pipefail", "-c", script]).envs(variables).env("NO_PROXY", "*");
    let running = shell.stdin(Stdio::null()).kill_on_drop(true).output();
    let Ok(ended) = timeout(sextant_tests::PATIENCE, running).await else {
        panic!("{what}: did not end:\n{script}")
    };
    let output = ended.unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    println!("{what}: {script}\n{text}{errors}");
    assert!(output.status.success(), "{what}: {}:\n{script}\n{text}{errors}", output.status);
    text
}

/// The shell blocks of a page, without the indentation that they have in a list.
fn blocks(text: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let Some(indent) = line.strip_suffix("```sh") else { continue };
        let block = lines.by_ref().take_while(|line| line.trim() != "```");
        let unindented = |line: &str| line.strip_prefix(indent).unwrap_or(line).to_owned() + "\n";
        blocks.push(block.map(unindented).collect());
    }
    blocks
}
