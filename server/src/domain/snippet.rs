//! The part of a text that answers a query best, to show under a hit.

/// Longest snippet, in characters.
const MAX_CHARS: usize = 240;
/// Letters that two words must share from the start to count as forms of one word.
const STEM_CHARS: usize = 4;

/// Chooses the sentences that share most words with the query, the first ones when none does.
/// Returns plain text, cut at a word with `…` where it had to be.
pub fn snippet(text: &str, query: &str) -> String {
    let wanted: Vec<String> = words(query).collect();
    let sentences = sentences(text);
    let best = sentences
        .iter()
        .enumerate()
        .map(|(i, sentence)| (score(sentence, &wanted), i))
        .max_by(|a, b| a.0.cmp(&b.0).then(b.1.cmp(&a.1)))
        .map_or(0, |(_, i)| i);
    let mut snippet = String::new();
    for sentence in &sentences[best.min(sentences.len())..] {
        if !snippet.is_empty() {
            if snippet.chars().count() + sentence.chars().count() >= MAX_CHARS {
                break;
            }
            snippet.push(' ');
        }
        snippet.push_str(sentence);
    }
    shorten(snippet)
}

fn words(text: &str) -> impl Iterator<Item = String> + '_ {
    text.split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(str::to_lowercase)
}

fn sentences(text: &str) -> Vec<&str> {
    text.split_inclusive(['.', '!', '?', '\n']).map(str::trim).filter(|s| !s.is_empty()).collect()
}

/// Distinct query words that the sentence holds in some form.
fn score(sentence: &str, wanted: &[String]) -> usize {
    let present: Vec<String> = words(sentence).collect();
    wanted.iter().filter(|wanted| present.iter().any(|word| same_stem(word, wanted))).count()
}

fn same_stem(a: &str, b: &str) -> bool {
    if a == b {
        return true;
    }
    let shared = a.chars().zip(b.chars()).take_while(|(a, b)| a == b).count();
    let longer = a.chars().count().max(b.chars().count());
    shared >= STEM_CHARS && longer - shared <= 3
}

fn shorten(text: String) -> String {
    let Some((end, _)) = text.char_indices().nth(MAX_CHARS) else { return text };
    let cut = text[..end].rfind(char::is_whitespace).unwrap_or(end);
    format!("{}…", text[..cut].trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str =
        "Lie on the floor. Push up until the elbows are straight. It trains the chest.";

    #[test]
    fn the_sentence_that_shares_most_words_comes_first() {
        assert_eq!(snippet(TEXT, "train my chest"), "It trains the chest.");
        assert!(snippet(TEXT, "pushing with elbows").starts_with("Push up until"));
    }

    #[test]
    fn without_shared_words_the_text_begins_at_its_start() {
        assert_eq!(snippet(TEXT, "swimming"), TEXT);
        assert_eq!(snippet("", "swimming"), "");
    }

    #[test]
    fn a_long_text_is_cut_at_a_word() {
        let long = "wörter ".repeat(100);
        let cut = snippet(&long, "x");
        assert!(cut.chars().count() <= MAX_CHARS + 1);
        assert!(cut.ends_with("wörter…"), "{cut}");
    }
}
