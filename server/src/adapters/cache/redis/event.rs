//! What servers tell each other over the channel: words joined by spaces.

use crate::cache::shared::{CacheEvent, Invalidation};

/// An event as a message; `token` names an invalidation.
pub fn invalidation_message(what: Invalidation, token: &str) -> String {
    match what {
        Invalidation::All => format!("invalidate {token} all"),
        Invalidation::Collection(id) => format!("invalidate {token} collection {id}"),
        Invalidation::Query { collection, query } => {
            let collection = collection.map_or_else(|| "-".to_owned(), |id| id.to_string());
            format!("invalidate {token} query {collection} {query:016x}")
        }
    }
}

/// The event that a message tells of, and the name of an invalidation. `None` when it is of no
/// known form: of a newer server.
pub fn parse(message: &str) -> Option<(CacheEvent, Option<String>)> {
    let words: Vec<&str> = message.split(' ').collect();
    let (token, what) = match words[..] {
        ["generation", collection, generation] => {
            let (collection, generation) = (collection.parse().ok()?, generation.parse().ok()?);
            return Some((CacheEvent::Generation { collection, generation }, None));
        }
        ["invalidate", token, "all"] => (token, Invalidation::All),
        ["invalidate", token, "collection", id] => {
            (token, Invalidation::Collection(id.parse().ok()?))
        }
        ["invalidate", token, "query", collection, query] => {
            let collection = match collection {
                "-" => None,
                id => Some(id.parse().ok()?),
            };
            let query = u64::from_str_radix(query, 16).ok()?;
            (token, Invalidation::Query { collection, query })
        }
        _ => return None,
    };
    Some((CacheEvent::Invalidated(what), Some(token.to_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read_as_they_were_meant() {
        for what in [
            Invalidation::All,
            Invalidation::Collection(7),
            Invalidation::query(None, "squat"),
            Invalidation::query(Some(-3), "squat"),
        ] {
            let message = invalidation_message(what, "ab12");
            let expected = (CacheEvent::Invalidated(what), Some("ab12".to_owned()));
            assert_eq!(parse(&message), Some(expected), "{message}");
        }
        let expected = CacheEvent::Generation { collection: 7, generation: 9 };
        assert_eq!(parse("generation 7 9"), Some((expected, None)));
    }

    #[test]
    fn what_is_not_understood_is_no_event() {
        for message in
            ["", "generation 7", "generation x 9", "invalidate", "invalidate t query - z"]
        {
            assert_eq!(parse(message), None, "{message:?}");
        }
    }
}
