//! How long the model takes for so many tokens, learnt from what it took.

use std::time::Duration;

/// Upper bounds of the sizes that are learnt apart: small batches cost more per token. The last
/// class has no bound.
const SIZES: [usize; 3] = [32, 128, usize::MAX];
/// Weight of what was known against a new measurement of the same size.
const MEMORY: f64 = 0.8;

/// Seconds per token of one worker, by size of the batch.
#[derive(Clone, Debug)]
pub struct Speed([f64; SIZES.len()]);

impl Speed {
    /// A guess for all sizes until they are measured.
    pub fn guess(tokens_per_second: f64) -> Self {
        Self([1.0 / tokens_per_second; SIZES.len()])
    }

    pub fn record(&mut self, tokens: usize, took: Duration) {
        if tokens > 0 {
            let measured = took.as_secs_f64().max(1e-9) / tokens as f64;
            let known = &mut self.0[size(tokens)];
            *known = MEMORY * *known + (1.0 - MEMORY) * measured;
        }
    }

    /// A measurement that replaces what was known.
    pub fn set(&mut self, tokens: usize, took: Duration) {
        self.0[size(tokens)] = took.as_secs_f64().max(1e-9) / tokens.max(1) as f64;
    }

    /// The expected time of a batch.
    pub fn seconds(&self, tokens: usize) -> f64 {
        tokens as f64 * self.0[size(tokens)]
    }

    /// Of one worker, in full batches.
    pub fn tokens_per_second(&self) -> f64 {
        1.0 / self.0[SIZES.len() - 1]
    }
}

fn size(tokens: usize) -> usize {
    SIZES.iter().position(|&bound| tokens <= bound).unwrap_or(SIZES.len() - 1)
}
