//! `sextant-server top`: shows what a running server does, from its metrics and its readiness.

mod exposition;
mod format;
mod rates;
mod terminal;
mod view;

use std::io::IsTerminal;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::Args;
use tokio::time::sleep;

use self::exposition::Samples;
use self::rates::{Between, Cores, CpuTimes};
use self::terminal::Screen;
use self::view::Shown;
use super::client::{self, Client, ClientOptions, Refused, Unanswered};
use super::serve::Signals;
use super::{Failure, print};
use crate::http::Readiness;

/// Longest wait for an answer. A server asks its stores for up to a second before it tells whether
/// it is ready.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Args)]
pub struct TopOptions {
    /// Seconds between two looks, 0.2 to 60.
    #[arg(long, value_name = "SECONDS", default_value = "2", value_parser = interval)]
    interval: Duration,
    /// Look twice, print what was in between and end; so it is, too, where the output is no
    /// terminal.
    #[arg(long)]
    once: bool,
    #[command(flatten)]
    client: ClientOptions,
}

fn interval(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().ok().filter(|seconds| (0.2..=60.0).contains(seconds));
    Ok(Duration::from_secs_f64(seconds.ok_or("it must be a number from 0.2 to 60")?))
}

pub async fn top(options: TopOptions) -> Result<(), Failure> {
    let watch = Watch::new(Client::new(&options.client)?);
    if options.once || !std::io::stdout().is_terminal() {
        return once(watch, options.interval).await;
    }
    let mut signals = Signals::new()?;
    tokio::select! {
        failed = live(watch, options.interval) => failed,
        () = signals.next() => Ok(()),
    }
}

async fn once(mut watch: Watch, interval: Duration) -> Result<(), Failure> {
    let earlier = scrape(&watch.client).await?;
    watch.add(earlier);
    sleep(interval).await;
    let later = scrape(&watch.client).await?;
    watch.add(later);
    print(&(watch.lines().join("\n") + "\n"))
}

/// Draws until it is dropped.
async fn live(mut watch: Watch, interval: Duration) -> Result<(), Failure> {
    watch.look().await?; // an error is told where the terminal is still as it was
    let screen = Screen::enter()?;
    loop {
        screen.draw(&watch.lines())?;
        sleep(interval).await;
        watch.look().await?;
    }
}

/// What the server told at one moment.
struct Scrape {
    at: Instant,
    samples: Samples,
    /// Or why it is not known.
    readiness: Result<Readiness, String>,
}

async fn scrape(client: &Client) -> Result<Scrape, Failure> {
    let metrics = async {
        let answer = client.get("/metrics", PATIENCE).await?;
        Ok::<_, Unanswered>((answer, Instant::now()))
    };
    let (metrics, readiness) = tokio::join!(metrics, client.get("/readyz", PATIENCE));
    let ((status, text), at) = metrics?;
    if !status.is_success() {
        return Err(client::refused(status, &text).into());
    }
    let readiness = readiness.map_err(|error| error.to_string()).and_then(|(status, body)| {
        serde_json::from_str(&body).map_err(|_| format!("/readyz answers {status}"))
    });
    Ok(Scrape { at, samples: Samples::parse(&text)?, readiness })
}

/// What was seen of a server.
struct Watch {
    client: Client,
    started: Instant,
    earlier: Option<Scrape>,
    later: Option<Scrape>,
    cpu: CpuTimes,
    cores: Option<Cores>,
    /// Why the last look saw nothing.
    fault: Option<String>,
}

impl Watch {
    fn new(client: Client) -> Self {
        Self {
            client,
            started: Instant::now(),
            earlier: None,
            later: None,
            cpu: CpuTimes::default(),
            cores: None,
            fault: None,
        }
    }

    /// Looks once more. A server that was seen may be away for any time; one that never was seen
    /// may still start, but what refuses to be looked at will do so again.
    async fn look(&mut self) -> Result<(), Failure> {
        match scrape(&self.client).await {
            Ok(scrape) => self.add(scrape),
            Err(error) if self.later.is_some() || passes(&error) => {
                self.fault = Some(error.to_string());
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn add(&mut self, scrape: Scrape) {
        let cpu = scrape.samples.sum("process_cpu_seconds_total", &[]);
        self.cores = cpu.and_then(|seconds| self.cpu.add(scrape.at, seconds));
        self.earlier = self.later.replace(scrape);
        self.fault = None;
    }

    fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if let Some(fault) = &self.fault {
            let since = self.later.as_ref().map_or(self.started, |last| last.at);
            let away = format::age(since.elapsed().as_secs_f64());
            lines.push(client::tame(&format!("no answer for {away}: {fault}")));
            lines.push(String::new());
        }
        match (&self.earlier, &self.later) {
            (Some(earlier), Some(later)) => lines.extend(view::lines(&Shown {
                url: self.client.url(),
                between: Between::new(&earlier.samples, &later.samples, later.at - earlier.at),
                readiness: &later.readiness,
                cores: self.cores,
                now: unix_seconds(later.at),
            })),
            _ => lines.push(format!("{}: rates come with the second answer", self.client.url())),
        }
        lines
    }
}

/// Whether a failed look may succeed when it is made again.
fn passes(error: &Failure) -> bool {
    match error.downcast_ref::<Refused>() {
        Some(refused) => refused.status.is_server_error(),
        None => error.is::<Unanswered>(),
    }
}

/// The time of day at a moment of the past.
fn unix_seconds(at: Instant) -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.saturating_sub(at.elapsed()).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use reqwest::StatusCode;

    use super::*;

    #[test]
    fn the_interval_has_bounds() {
        assert_eq!(interval("0.2"), Ok(Duration::from_millis(200)));
        assert_eq!(interval("60"), Ok(Duration::from_mins(1)));
        for wrong in ["0", "0.19", "60.1", "-1", "NaN", "inf", "2s", ""] {
            assert!(interval(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_server_that_starts_is_waited_for_and_one_that_refuses_is_not() {
        let refused = |status| Failure::from(client::refused(status, ""));
        assert!(passes(&refused(StatusCode::BAD_GATEWAY)));
        for status in [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN, StatusCode::NOT_FOUND] {
            assert!(!passes(&refused(status)), "{status}");
        }
        assert!(!passes(&Failure::from("line 1 of the metrics has no value")));
    }
}
