//! Queries and documents about exercises, made by a grammar: the `n`-th is the same in every run.

use serde_json::{Value, json};

const MOVES: &[&str] = &[
    "squat", "deadlift", "lunge", "row", "press", "curl", "plank", "bridge", "push-up", "pull-up",
    "step-up", "swing", "carry", "crunch", "stretch", "sprint", "rotation", "raise", "kickback",
    "hold", "jump", "crawl", "thrust",
];
const MUSCLES: &[&str] = &[
    "thighs",
    "glutes",
    "hamstrings",
    "calves",
    "lower back",
    "upper back",
    "chest",
    "shoulders",
    "biceps",
    "triceps",
    "forearms",
    "core",
    "hips",
    "neck",
    "obliques",
    "adductors",
    "shins",
];
const EQUIPMENT: &[&str] = &[
    "dumbbell",
    "barbell",
    "kettlebell",
    "resistance band",
    "cable",
    "medicine ball",
    "bench",
    "sandbag",
    "bodyweight",
    "suspension strap",
    "foam roller",
    "weight plate",
    "chair",
];
const PLACES: &[&str] = &[
    "at home",
    "in the office",
    "in a small room",
    "before breakfast",
    "after a run",
    "on a rest day",
    "while travelling",
    "in the park",
    "during a warm-up",
    "on a gym floor",
    "between meetings",
];
const GOALS: &[&str] = &[
    "build strength in",
    "loosen",
    "protect",
    "tone",
    "wake up",
    "add power to",
    "rehabilitate",
    "balance",
    "relax",
    "isolate",
    "gently train",
    "quickly tire",
    "slowly load",
    "stop pain in",
];
const PEOPLE: &[&str] = &[
    "for beginners",
    "for runners",
    "for climbers",
    "for older people",
    "for desk workers",
    "for cyclists",
    "for swimmers",
    "after an injury",
    "with sore knees",
    "with a stiff back",
    "for lifters",
    "for dancers",
    "for children",
    "without equipment",
    "with little time",
    "for teams",
    "for two",
];
const CUES: &[&str] = &[
    "keep the ribs down",
    "breathe out at the top",
    "pause at the bottom",
    "look straight ahead",
    "keep the elbows close",
    "press through the heels",
    "let the arms hang",
    "turn the palms up",
    "lower it under control",
    "brace before every repetition",
    "stay tall",
    "move without haste",
    "spread the fingers",
    "tuck the chin",
    "grip firmly",
    "keep both hips level",
];
const FAULTS: &[&str] = &[
    "Rounding the spine",
    "Bouncing",
    "Rushing",
    "Letting the knees fall in",
    "Holding the breath",
    "Shrugging",
    "Swinging the weight",
    "Looking up",
    "Twisting",
    "Stopping halfway",
    "Locking the joints",
];
const OUTCOMES: &[&str] = &[
    "robs it of its use",
    "shifts work to the joints",
    "means the load is too high",
    "is the usual mistake",
    "shows that it is time to rest",
    "makes it easier than it should be",
    "strains the wrists",
];
const LEVELS: &[&str] = &["beginner", "intermediate", "advanced"];

/// Documents with one of these have 1 % of all.
pub const PROGRAMS: u64 = 100;

/// Takes one word of each list, as the digits of a number are taken.
struct Digits(u64);

impl Digits {
    fn pick<'a>(&mut self, words: &[&'a str]) -> &'a str {
        let count = words.len() as u64;
        let word = words[(self.0 % count) as usize];
        self.0 /= count;
        word
    }
}

/// The `n`-th number of a sequence that visits each of `0..count` once; neighbours lie apart.
fn scattered(n: u64, count: u64) -> u64 {
    // A prime above every count here, so it shares no factor with one.
    const STEP: u64 = 2_654_435_761;
    (n % count) * STEP % count
}

/// The `n`-th query, distinct for the first million.
pub fn query(n: u64) -> String {
    let lists = [GOALS, MUSCLES, EQUIPMENT, MOVES, PEOPLE, PLACES];
    let count: usize = lists.iter().map(|list| list.len()).product();
    let mut digits = Digits(scattered(n, count as u64));
    lists.map(|list| digits.pick(list)).join(" ")
}

/// The `n`-th text of this many words.
pub fn text(n: u64, words: usize) -> String {
    let sentences = (n * 97..).map(query);
    let stream = sentences
        .flat_map(|sentence| sentence.split(' ').map(ToOwned::to_owned).collect::<Vec<_>>());
    stream.take(words).collect::<Vec<_>>().join(" ")
}

/// The `n`-th document, some twenty words long; distinct for the first thousand million.
pub fn document(n: u64) -> Value {
    let lists = [EQUIPMENT, MOVES, MUSCLES, PEOPLE, CUES, CUES, FAULTS, OUTCOMES];
    let count: usize = lists.iter().map(|list| list.len()).product();
    let mut digits = Digits(scattered(n, count as u64));
    let [equipment, movement, muscles, people, first, then, fault, outcome] =
        lists.map(|list| digits.pick(list));
    json!({
        "id": format!("exercise-{n:07}"),
        "name": format!("{equipment} {movement}"),
        "description": format!(
            "Trains the {muscles} {people}: {first}, then {then}. {fault} {outcome}."
        ),
        "level": LEVELS[(n % LEVELS.len() as u64) as usize],
        "program": program(n % PROGRAMS),
    })
}

pub fn program(n: u64) -> String {
    format!("program-{n:02}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn queries_and_documents_do_not_repeat() {
        let queries: HashSet<String> = (0..100_000).map(query).collect();
        assert_eq!(queries.len(), 100_000);
        let body = |n| document(n)["name"].to_string() + &document(n)["description"].to_string();
        let documents: HashSet<String> = (0..100_000).map(body).collect();
        assert_eq!(documents.len(), 100_000);
    }

    #[test]
    fn texts_have_the_words_asked_for() {
        for words in [1, 2, 17, 200] {
            assert_eq!(text(3, words).split(' ').count(), words);
        }
    }
}
