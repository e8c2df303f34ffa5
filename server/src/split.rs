//! Cuts a stream of bytes into documents without holding more than one of them.

use crate::domain::Document;
use crate::ingest::IngestError;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One JSON array of documents, or a single document.
    Json,
    /// One document a line; empty lines are skipped.
    Lines,
}

/// Finds where documents begin and end; what is in between is for the JSON parser to judge.
pub struct Splitter {
    format: Format,
    max_bytes: usize,
    state: State,
    piece: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Before the array or the single document.
    Start,
    /// Before an element; the first may be missing.
    Before {
        first: bool,
    },
    /// Inside a document, this many brackets deep.
    Inside {
        array: bool,
        depth: usize,
        string: bool,
        escaped: bool,
    },
    /// After an element.
    After,
    /// After the end.
    End,
    Lines,
}

impl Splitter {
    pub fn new(format: Format, max_bytes: usize) -> Self {
        let state = match format {
            Format::Json => State::Start,
            Format::Lines => State::Lines,
        };
        Self { format, max_bytes, state, piece: Vec::new() }
    }

    /// Takes the next bytes and returns the documents that end in them.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, IngestError> {
        let mut pieces = Vec::new();
        for byte in bytes {
            match self.format {
                Format::Lines => self.line_byte(*byte, &mut pieces)?,
                Format::Json => self.json_byte(*byte, &mut pieces)?,
            }
        }
        Ok(pieces)
    }

    fn push(&mut self, byte: u8) -> Result<(), IngestError> {
        if self.piece.len() >= self.max_bytes {
            let message = format!("import has a document longer than {} bytes", self.max_bytes);
            return Err(IngestError::TooLarge(message));
        }
        self.piece.push(byte);
        Ok(())
    }

    fn line_byte(&mut self, byte: u8, pieces: &mut Vec<Vec<u8>>) -> Result<(), IngestError> {
        if byte != b'\n' {
            return self.push(byte);
        }
        let line = std::mem::take(&mut self.piece);
        if !line.trim_ascii().is_empty() {
            pieces.push(line);
        }
        Ok(())
    }

    fn json_byte(&mut self, byte: u8, pieces: &mut Vec<Vec<u8>>) -> Result<(), IngestError> {
        let space = byte.is_ascii_whitespace();
        self.state = match self.state {
            state @ (State::Start | State::Before { .. } | State::After | State::End) if space => {
                state
            }
            State::Start if byte == b'[' => State::Before { first: true },
            State::Before { first: true } if byte == b']' => State::End,
            State::Start if byte == b'{' => self.begin(byte, false)?,
            State::Before { .. } if byte == b'{' => self.begin(byte, true)?,
            State::Start => return Err(broken("must be a JSON array of documents")),
            State::Before { .. } => return Err(broken("holds what is not a JSON object")),
            State::After if byte == b',' => State::Before { first: false },
            State::After if byte == b']' => State::End,
            State::After => return Err(broken("has no comma between two documents")),
            State::End => return Err(broken("goes on after its end")),
            State::Inside { array, depth, string, escaped } => {
                self.push(byte)?;
                let depth = match byte {
                    b'{' | b'[' if !string => depth + 1,
                    b'}' | b']' if !string => depth - 1,
                    _ => depth,
                };
                if depth == 0 {
                    pieces.push(std::mem::take(&mut self.piece));
                    if array { State::After } else { State::End }
                } else {
                    let string = string ^ (byte == b'"' && !escaped);
                    let escaped = string && byte == b'\\' && !escaped;
                    State::Inside { array, depth, string, escaped }
                }
            }
            State::Lines => State::Lines,
        };
        Ok(())
    }

    fn begin(&mut self, byte: u8, array: bool) -> Result<State, IngestError> {
        self.push(byte)?;
        Ok(State::Inside { array, depth: 1, string: false, escaped: false })
    }

    /// What is left at the end of the input.
    pub fn finish(&mut self) -> Result<Vec<Vec<u8>>, IngestError> {
        match self.state {
            State::End => Ok(Vec::new()),
            State::Lines => {
                let line = std::mem::take(&mut self.piece);
                Ok(if line.trim_ascii().is_empty() { Vec::new() } else { vec![line] })
            }
            _ => Err(broken("ends in the middle")),
        }
    }
}

fn broken(message: &str) -> IngestError {
    IngestError::Broken(format!("the body {message}"))
}

/// The document of a piece, which stands at `place` of the input.
pub fn parse(place: usize, piece: &[u8]) -> Result<Document, IngestError> {
    let value = serde_json::from_slice(piece)
        .map_err(|error| IngestError::Malformed { place, message: error.to_string() })?;
    Document::parse(value, &format!("[{place}]")).map_err(IngestError::Invalid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn split(format: Format, parts: &[&[u8]]) -> Result<Vec<Value>, String> {
        let mut splitter = Splitter::new(format, 1_000);
        let mut pieces = Vec::new();
        for part in parts {
            pieces.extend(splitter.feed(part).map_err(|error| error.to_string())?);
        }
        pieces.extend(splitter.finish().map_err(|error| error.to_string())?);
        pieces
            .iter()
            .map(|piece| serde_json::from_slice(piece).map_err(|error| error.to_string()))
            .collect()
    }

    #[test]
    fn an_array_a_single_document_and_lines_are_understood() {
        let (a, b) = (json!({"id": "a"}), json!({"id": "b"}));
        assert_eq!(
            split(Format::Json, &[b" [ {\"id\":\"a\"} , {\"id\":\"b\"} ] "]),
            Ok(vec![a.clone(), b.clone()])
        );
        assert_eq!(split(Format::Json, &[b"{\"id\":\"a\"}"]), Ok(vec![a.clone()]));
        assert_eq!(split(Format::Json, &[b"[]"]), Ok(vec![]));
        assert_eq!(split(Format::Lines, &[b"{\"id\":\"a\"}\n\r\n{\"id\":\"b\"}"]), Ok(vec![a, b]));
    }

    #[test]
    fn a_body_that_is_cut_off_or_goes_on_is_refused() {
        for body in
            ["", "[", "[{\"id\":\"a\"}", "[{\"id\":\"a\"},]", "[] x", "[1]", "7", "[{}{}]", "{} {}"]
        {
            assert!(split(Format::Json, &[body.as_bytes()]).is_err(), "{body}");
        }
    }

    #[test]
    fn a_document_has_a_largest_size() {
        let long = format!("[{{\"id\":\"{}\"}}]", "x".repeat(1_000));
        assert!(split(Format::Json, &[long.as_bytes()]).unwrap_err().contains("1000 bytes"));
        assert!(split(Format::Lines, &[long.as_bytes()]).is_err());
    }

    proptest! {
        #[test]
        fn where_the_body_is_cut_into_parts_does_not_matter(
            names in proptest::collection::vec("[\\PC\"\\\\{}\\[\\],\n]{0,12}", 0..6),
            cuts in proptest::collection::vec(0_usize..400, 0..6),
        ) {
            let documents: Vec<Value> =
                names.iter().map(|name| json!({"id": name, "tags": [name]})).collect();
            let body = serde_json::to_vec(&documents).unwrap();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (body.len() + 1)).collect();
            cuts.extend([0, body.len()]);
            cuts.sort_unstable();
            let parts: Vec<&[u8]> = cuts.windows(2).map(|w| &body[w[0]..w[1]]).collect();
            prop_assert_eq!(split(Format::Json, &parts), Ok(documents));
        }
    }
}
