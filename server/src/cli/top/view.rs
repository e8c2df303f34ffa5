//! What is shown of a server, as lines of at most 80 characters, but for what it says itself.

use std::fmt::Write;

use super::exposition::Labels;
use super::format::{age, bytes, count, number, percent, time};
use super::rates::{Between, Cores};
use crate::cli::client::tame;
use crate::http::Readiness;

const WIDTH: usize = 80;
const HEADING: usize = 12;
const CELL: usize = 11;

const HTTP: &str = "http_server_request_duration_seconds";
const STAGE: &str = "sextant_search_stage_duration_seconds";
const CACHE: &str = "sextant_cache_requests_total";
const TOKENS: &str = "sextant_embed_tokens_total";
const BREAKER: &str = "sextant_breaker_open";

const SEARCH: &[(&str, &str)] = &[("route", "/v1/collections/{collection}/search")];
const STAGES: [&str; 5] = ["embed", "index", "documents", "cache", "wait"];
const TIERS: [&str; 3] = ["results", "embeddings", "stale"];

pub struct Shown<'a> {
    pub url: &'a str,
    pub between: Between<'a>,
    /// Or why it is not known.
    pub readiness: &'a Result<Readiness, String>,
    pub cores: Option<Cores>,
    /// When it was so, in seconds since 1970.
    pub now: f64,
}

pub fn lines(shown: &Shown) -> Vec<String> {
    let between = &shown.between;
    let sections = [
        server(shown),
        requests(between),
        searches(between),
        caches(between),
        embedder(between),
        stores(shown),
    ];
    let mut lines: Vec<String> = Vec::new();
    for section in sections.into_iter().filter(|section| !section.is_empty()) {
        if !lines.is_empty() {
            lines.push(String::new());
        }
        lines.extend(section.iter().map(|line| tame(line)));
    }
    lines
}

fn server(shown: &Shown) -> Vec<String> {
    let between = &shown.between;
    let sum = |name: &str| between.later.sum(name, &[]);
    let mut items = vec![shown.url.to_owned(), phase(shown.readiness)];
    if between.restarted() {
        items.push("restarted".to_owned());
    }
    if let Some(start) = sum("process_start_time_seconds") {
        items.push(format!("up {}", age(shown.now - start)));
    }
    if let Some(memory) = sum("process_resident_memory_bytes") {
        items.push(format!("memory {}", bytes(Some(memory))));
    }
    if let Some(Cores { used, over }) = shown.cores {
        items.push(format!("CPU {used:.2} cores over {}", time(Some(over.as_secs_f64()))));
    }
    items.push(format!("rates over {}", time(Some(between.elapsed.as_secs_f64()))));
    let mut lines = listed("server", items);
    let builds = between.later.matching("sextant_build_info", &[]);
    let builds: Vec<&Labels> = builds.map(|(labels, _)| labels).collect();
    if let Some(first) = builds.first() {
        let model =
            |labels: &&Labels| format!("{} on {}", label(labels, "model"), label(labels, "device"));
        let version = label(first, "version").to_owned();
        lines.extend(listed("build", [version].into_iter().chain(builds.iter().map(model))));
    }
    lines
}

fn phase(readiness: &Result<Readiness, String>) -> String {
    match readiness {
        Ok(readiness) if !readiness.ready && readiness.phase == "ready" => "not ready".to_owned(),
        Ok(readiness) => readiness.phase.clone(),
        Err(_) => "readiness unknown".to_owned(),
    }
}

/// All requests, also those that ask for this view.
fn requests(between: &Between) -> Vec<String> {
    let by_status = between.rates_by(&format!("{HTTP}_count"), "status");
    let of = |class: &str| {
        let rates = by_status.iter().filter(|(status, _)| status.starts_with(class));
        let rate = rates.map(|(_, rate)| *rate).reduce(|sum, rate| sum + rate);
        format!("{}/s", number(rate.or(Some(0.0))))
    };
    let mut items = vec![of("")];
    items.extend(["2", "4", "5"].map(|class| format!("{class}xx {}", of(class))));
    let active = between.later.sum("sextant_http_active_requests", &[]);
    items.push(format!("{} active", count(active)));
    listed("requests", items)
}

fn searches(between: &Between) -> Vec<String> {
    let mut lines = vec![
        row("", &["/s", "mean", "p50", "p99"].map(str::to_owned)),
        timing("searches", between, HTTP, SEARCH),
    ];
    for stage in STAGES {
        let labels = [("stage", stage)];
        if between.later.sum(&format!("{STAGE}_count"), &labels).is_some() {
            lines.push(timing(&format!("  {stage}"), between, STAGE, &labels));
        }
    }
    lines
}

fn timing(heading: &str, between: &Between, name: &str, labels: &[(&str, &str)]) -> String {
    let rate = between.rate(&format!("{name}_count"), labels);
    let quantile = |q| time(between.quantile(q, name, labels));
    let mean = time(between.mean(name, labels));
    row(heading, &[number(rate.or(Some(0.0))), mean, quantile(0.5), quantile(0.99)])
}

fn caches(between: &Between) -> Vec<String> {
    let head = ["hits", "coalesced", "/s", "entries", "held", "evicted/s"];
    let mut lines = vec![row("cache", &head.map(str::to_owned))];
    for tier in TIERS {
        let labels = [("tier", tier)];
        let entries = between.later.sum("sextant_cache_entries", &labels);
        let rate = between.rate(CACHE, &labels);
        if entries.is_none() && rate.is_none() {
            continue;
        }
        let of = |result| {
            between.increase(CACHE, &[("tier", tier), ("result", result)]).unwrap_or_default()
        };
        // As `sextant:cache_hits:ratio_rate5m` of the rules for Prometheus has it.
        let all = of("hit") + of("miss") + of("coalesced");
        let share = |part: f64| percent((all > 0.0).then(|| part / all));
        let cells = [
            share(of("hit")),
            share(of("coalesced")),
            number(rate),
            count(entries),
            bytes(between.later.sum("sextant_cache_bytes", &labels)),
            number(between.rate("sextant_cache_evictions_total", &labels)),
        ];
        lines.push(row(tier, &cells));
    }
    if lines.len() > 1 { lines } else { Vec::new() }
}

fn embedder(between: &Between) -> Vec<String> {
    let later = between.later;
    let Some(waiting) = later.sum("sextant_embed_queue_depth", &[]) else { return Vec::new() };
    let tokens = between.increase(TOKENS, &[]).filter(|tokens| *tokens > 0.0);
    let padding = between.increase(TOKENS, &[("kind", "padding")]).unwrap_or_default();
    let mut lines = listed(
        "embedder",
        [
            format!("{} waiting", count(Some(waiting))),
            format!("oldest {}", time(later.sum("sextant_embed_queue_oldest_age_seconds", &[]))),
            format!("{} texts a batch", number(between.mean("sextant_embed_batch_size", &[]))),
            format!("padding {}", percent(tokens.map(|tokens| padding / tokens))),
        ],
    );
    let texts = by_label(between, "sextant_embed_texts_total", "outcome");
    if !texts.is_empty() {
        lines.extend(listed("  texts", texts));
    }
    lines
}

fn stores(shown: &Shown) -> Vec<String> {
    let between = &shown.between;
    let later = between.later;
    let sum = |name: &str, labels: &[(&str, &str)]| later.sum(name, labels);
    let mut lines = match shown.readiness {
        Ok(readiness) if readiness.dependencies.is_empty() => Vec::new(), // it starts
        Ok(readiness) => listed("depends on", readiness.dependencies.iter().map(dependency)),
        Err(fault) => listed("depends on", [fault.clone()]),
    };
    let nodes: Vec<String> = later
        .matching("sextant_postgres_usable", &[])
        .map(|(labels, usable)| {
            let usable = if usable > 0.0 { "usable" } else { "not usable" };
            format!("{} {} {usable}", label(labels, "role"), label(labels, "node"))
        })
        .collect();
    if !nodes.is_empty() {
        lines.extend(listed("Postgres", nodes));
    }
    // A server has breakers for what it uses, from its start on.
    if sum(BREAKER, &[("part", "index")]).is_some() {
        let mut results = by_label(between, "sextant_milvus_requests_total", "result");
        if results.is_empty() {
            results.push("not asked yet".to_owned());
        }
        lines.extend(listed("Milvus", results));
    }
    if sum(BREAKER, &[("part", "cache")]).is_some() {
        let up = sum("sextant_redis_up", &[]).is_some_and(|up| up > 0.0);
        let rate = between.rate("sextant_redis_requests_total", &[]).or(Some(0.0));
        let state = if up { "up" } else { "down" };
        lines.extend(listed("Redis", [state.to_owned(), format!("{}/s", number(rate))]));
    }
    if let Some(waiting) = sum("sextant_outbox_documents", &[("state", "waiting")]) {
        let aside = sum("sextant_outbox_documents", &[("state", "set-aside")]);
        let items = [
            format!("{} waiting", count(Some(waiting))),
            format!("{} set aside", count(aside)),
            format!("update lag {}", time(sum("sextant_update_lag_seconds", &[]))),
        ];
        lines.extend(listed("outbox", items));
    }
    if let Some(used) = sum("sextant_remote_embedder_up", &[]) {
        let all = later.matching("sextant_remote_embedder_up", &[]).count();
        lines.extend(listed("embedders", [format!("{} of {all} used", count(Some(used)))]));
    }
    if sum(BREAKER, &[]).is_some() {
        lines.extend(listed("breakers", breakers(between)));
    }
    lines
}

fn dependency((name, state): (&String, &String)) -> String {
    if state == "ok" { format!("{name} ok") } else { format!("{name}: {state}") }
}

fn breakers(between: &Between) -> Vec<String> {
    let breakers = between.later.matching(BREAKER, &[]);
    let open = breakers
        .filter(|(_, open)| *open > 0.0)
        .map(|(labels, _)| format!("{} {} open", label(labels, "part"), label(labels, "server")));
    let open: Vec<String> = open.collect();
    if open.is_empty() { vec!["none open".to_owned()] } else { open }
}

fn by_label(between: &Between, name: &str, of: &str) -> Vec<String> {
    let rates = between.rates_by(name, of);
    rates.iter().map(|(value, rate)| format!("{value} {}/s", number(Some(*rate)))).collect()
}

fn label<'l>(labels: &'l Labels, name: &str) -> &'l str {
    labels.get(name).map_or("", String::as_str)
}

fn row(heading: &str, cells: &[String]) -> String {
    let mut line = format!("{heading:<HEADING$}");
    for cell in cells {
        let _ = write!(line, "{cell:>CELL$}"); // a string takes it
    }
    line
}

/// Items after a heading, as many a line as fit.
fn listed(heading: &str, items: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = format!("{heading:<HEADING$}");
    let mut first = true;
    for item in items {
        if !first && line.chars().count() + 2 + item.chars().count() > WIDTH {
            lines.push(std::mem::replace(&mut line, " ".repeat(HEADING)));
            first = true;
        }
        if !first {
            line.push_str("  ");
        }
        line.push_str(&item);
        first = false;
    }
    lines.push(line);
    lines
}

#[cfg(test)]
mod tests;
