//! What the device keeps of a sequence between steps.

use wattle_shaders::{FROM_STATE, Row};

/// The state of one sequence.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// The last sampled token; 0 before there is one.
    pub last: u32,
    /// One bit per token: was it run or sampled in this sequence?
    seen: Vec<u64>,
}

impl State {
    /// The token that `row` runs.
    pub fn token(&self, row: &Row) -> u32 {
        if row.flags & FROM_STATE == 0 { row.token } else { self.last }
    }

    /// Marks a token as seen.
    pub fn mark(&mut self, token: u32) {
        let word = token as usize / 64;
        if self.seen.len() <= word {
            self.seen.resize(word + 1, 0);
        }
        self.seen[word] |= 1 << (token % 64);
    }

    /// Whether a token was seen.
    pub fn has_seen(&self, token: u32) -> bool {
        self.seen.get(token as usize / 64).is_some_and(|word| word >> (token % 64) & 1 == 1)
    }

    /// Takes a sampled token.
    pub fn draw(&mut self, token: u32) {
        self.last = token;
        self.mark(token);
    }
}
