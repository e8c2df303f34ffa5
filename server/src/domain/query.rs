//! What is asked for.

use serde::{Deserialize, Serialize};
use unicode_normalization::UnicodeNormalization;
use utoipa::ToSchema;

/// How documents are matched to a query.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Hash,
    Serialize,
    Deserialize,
    ToSchema,
    clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// By meaning: cosine similarity of embeddings.
    #[default]
    Dense,
    /// By words: BM25.
    Lexical,
    /// By both, joined by reciprocal rank fusion.
    Hybrid,
}

impl Mode {
    pub fn uses_vectors(self) -> bool {
        self != Self::Lexical
    }

    pub fn uses_words(self) -> bool {
        self != Self::Dense
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Dense => "dense",
            Self::Lexical => "lexical",
            Self::Hybrid => "hybrid",
        }
    }
}

/// One spelling for queries that mean the same to model and full text: Unicode NFC, lower case
/// (the model is uncased), white space folded to single spaces, none at the ends.
pub fn normalise(query: &str) -> String {
    let mut normalised = String::with_capacity(query.len());
    // Most queries are ASCII, where composition changes nothing and cases map byte by byte.
    let ascii = query.is_ascii();
    for word in query.split_whitespace() {
        if !normalised.is_empty() {
            normalised.push(' ');
        }
        if ascii {
            normalised.push_str(word);
        } else {
            normalised.extend(word.nfc().flat_map(char::to_lowercase));
        }
    }
    if ascii {
        normalised.make_ascii_lowercase();
    }
    normalised
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn case_white_space_and_composition_do_not_make_another_query() {
        assert_eq!(normalise("  Sore\t\nKNEES "), "sore knees");
        assert_eq!(normalise("Cafe\u{301}"), normalise("café"));
    }

    proptest! {
        #[test]
        fn ascii_is_normalised_as_all_else_is(query in "[ -~\t]{0,40}") {
            // A letter outside of ASCII takes the general way.
            let general = normalise(&format!("{query} é"));
            let general = general.strip_suffix('é').unwrap_or_default().trim_end();
            prop_assert_eq!(normalise(&query), general);
        }

        #[test]
        fn normalising_twice_changes_nothing(query in "\\PC{0,40}") {
            let once = normalise(&query);
            // Lower-casing may yield letters that compose anew; a second pass settles them.
            let twice = normalise(&once);
            prop_assert_eq!(normalise(&twice), twice);
        }
    }
}
