//! What is killed, and started again.

use std::cell::Cell;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use sextant_tests::production::Stores;
use sextant_tests::{Options, Server};

use super::Addresses;
use crate::Failure;

/// How often it is looked whether all is written.
const LOOK: Duration = Duration::from_millis(100);

pub struct Kills {
    pub servers: u64,
    pub redis: u64,
    pub milvus: u64,
    random: StdRng,
    every: (f64, f64),
    settings: Options,
}

impl Kills {
    pub fn new(seed: u64, every: &[f64], settings: Options) -> Self {
        let shortest = every.first().copied().unwrap_or(5.0);
        let longest = every.last().copied().unwrap_or(shortest).max(shortest);
        Self {
            servers: 0,
            redis: 0,
            milvus: 0,
            random: StdRng::seed_from_u64(seed),
            every: (shortest, longest),
            settings,
        }
    }

    /// Kills one after the other until `done`; then everything runs.
    pub async fn go_on(
        &mut self,
        stores: &mut Stores,
        servers: &mut [Option<Server>],
        addresses: &Addresses,
        done: &Cell<bool>,
    ) -> Result<(), Failure> {
        loop {
            let pause = self.random.random_range(self.every.0..=self.every.1);
            let until = tokio::time::Instant::now() + Duration::from_secs_f64(pause);
            while tokio::time::Instant::now() < until {
                if done.get() {
                    return Ok(());
                }
                tokio::time::sleep(LOOK).await;
            }
            // Servers as often as the two stores together, which take longer to come back.
            match self.random.random_range(0..4) {
                0 => {
                    stores.redis.process.kill().await?;
                    stores.redis.restart().await?;
                    self.redis += 1;
                }
                1 => {
                    stores.milvus.process().kill().await?;
                    stores.milvus.restart().await?;
                    self.milvus += 1;
                }
                _ => {
                    let place = self.random.random_range(0..servers.len());
                    if let Some(server) = servers[place].take() {
                        server.kill9().await;
                    }
                    let server = Server::start(self.settings.clone()).await;
                    addresses.set(place, server.api.clone());
                    servers[place] = Some(server);
                    self.servers += 1;
                }
            }
        }
    }
}
