use std::collections::BTreeMap;
use std::time::Duration;

use super::*;
use crate::cli::top::exposition::Samples;

const EARLIER: &str = r#"
process_start_time_seconds 1000
http_server_request_duration_seconds_count{method="GET",route="/readyz",status="200"} 7
http_server_request_duration_seconds_bucket{method="POST",route="/v1/collections/{collection}/search",status="200",le="0.01"} 1000
http_server_request_duration_seconds_bucket{method="POST",route="/v1/collections/{collection}/search",status="200",le="+Inf"} 1000
http_server_request_duration_seconds_sum{method="POST",route="/v1/collections/{collection}/search",status="200"} 5
http_server_request_duration_seconds_count{method="POST",route="/v1/collections/{collection}/search",status="200"} 1000
sextant_cache_requests_total{tier="results",result="hit"} 900
sextant_cache_requests_total{tier="results",result="miss"} 100
sextant_cache_evictions_total{tier="results"} 0
sextant_embed_texts_total{outcome="embedded"} 90
sextant_embed_batch_size_sum 90
sextant_embed_batch_size_count 45
sextant_embed_tokens_total{kind="text"} 900
"#;

const LATER: &str = r#"
process_start_time_seconds 1000
process_resident_memory_bytes 419430400
sextant_build_info{version="0.1.0",model="all-MiniLM-L6-v2",model_hash="ab",device="cpu"} 1
sextant_http_active_requests 2
http_server_request_duration_seconds_count{method="GET",route="/readyz",status="200"} 8
http_server_request_duration_seconds_bucket{method="POST",route="/v1/collections/{collection}/search",status="200",le="0.01"} 1180
http_server_request_duration_seconds_bucket{method="POST",route="/v1/collections/{collection}/search",status="200",le="+Inf"} 1180
http_server_request_duration_seconds_sum{method="POST",route="/v1/collections/{collection}/search",status="200"} 5.9
http_server_request_duration_seconds_count{method="POST",route="/v1/collections/{collection}/search",status="200"} 1180
http_server_request_duration_seconds_bucket{method="POST",route="/v1/collections/{collection}/search",status="503",le="0.01"} 20
http_server_request_duration_seconds_bucket{method="POST",route="/v1/collections/{collection}/search",status="503",le="+Inf"} 20
http_server_request_duration_seconds_sum{method="POST",route="/v1/collections/{collection}/search",status="503"} 0.1
http_server_request_duration_seconds_count{method="POST",route="/v1/collections/{collection}/search",status="503"} 20
sextant_search_stage_duration_seconds_bucket{stage="embed",le="0.001"} 0
sextant_search_stage_duration_seconds_bucket{stage="embed",le="0.002"} 10
sextant_search_stage_duration_seconds_bucket{stage="embed",le="+Inf"} 10
sextant_search_stage_duration_seconds_sum{stage="embed"} 0.012
sextant_search_stage_duration_seconds_count{stage="embed"} 10
sextant_cache_requests_total{tier="results",result="hit"} 1050
sextant_cache_requests_total{tier="results",result="miss"} 140
sextant_cache_requests_total{tier="results",result="coalesced"} 10
sextant_cache_requests_total{tier="results",result="bypass"} 4
sextant_cache_entries{tier="results"} 1234
sextant_cache_bytes{tier="results"} 3145728
sextant_cache_evictions_total{tier="results"} 3
sextant_cache_entries{tier="embeddings"} 0
sextant_cache_bytes{tier="embeddings"} 0
sextant_cache_evictions_total{tier="embeddings"} 0
sextant_embed_queue_depth 3
sextant_embed_queue_oldest_age_seconds 0.0021
sextant_embed_texts_total{outcome="embedded"} 100
sextant_embed_texts_total{outcome="joined"} 1
sextant_embed_batch_size_sum 100
sextant_embed_batch_size_count 49
sextant_embed_tokens_total{kind="text"} 975
sextant_embed_tokens_total{kind="padding"} 25
sextant_redis_up 0
sextant_update_lag_seconds 0
"#;

const PRODUCTION: &str = r#"
sextant_postgres_usable{node="10.0.0.1:5432",role="primary"} 1
sextant_postgres_usable{node="10.0.0.1:5432",role="replica"} 1
sextant_postgres_usable{node="10.0.0.2:5432",role="replica"} 0
sextant_breaker_open{part="index",server="0"} 1
sextant_breaker_open{part="cache",server="0"} 0
sextant_milvus_requests_total{result="ok"} 40
sextant_milvus_requests_total{result="failed"} 2
sextant_redis_up 1
sextant_redis_requests_total{kind="results",result="hit"} 10
sextant_redis_requests_total{kind="results",result="miss"} 10
sextant_outbox_documents{state="waiting"} 1200
sextant_outbox_documents{state="set-aside"} 1
sextant_update_lag_seconds 2.5
sextant_remote_embedder_up{endpoint="http://10.0.0.7:8080"} 1
sextant_remote_embedder_up{endpoint="http://10.0.0.8:8080"} 0
"#;

fn ready(dependencies: &[(&str, &str)]) -> Readiness {
    let dependencies = dependencies.iter().map(|(name, state)| ((*name).into(), (*state).into()));
    Readiness { ready: true, phase: "ready".to_owned(), dependencies: dependencies.collect() }
}

fn shown(earlier: &str, later: &str, readiness: &Result<Readiness, String>) -> Vec<String> {
    let (earlier, later) = (Samples::parse(earlier).unwrap(), Samples::parse(later).unwrap());
    let between = Between::new(&earlier, &later, Duration::from_secs(2));
    let cores = Some(Cores { used: 0.5, over: Duration::from_secs(20) });
    let url = "http://127.0.0.1:8080";
    lines(&Shown { url, between, readiness, cores, now: 8985.0 })
}

#[track_caller]
fn assert_fits(lines: &[String]) {
    for line in lines {
        assert!(line.chars().count() <= WIDTH, "{line:?}");
    }
}

#[test]
fn a_server_on_its_own_is_shown_without_parts_that_it_does_not_have() {
    let ready = ready(&[("documents", "ok"), ("embedder", "ok"), ("index", "ok")]);
    let lines = shown(EARLIER, LATER, &Ok(ready));
    let expected = "
server      http://127.0.0.1:8080  ready  up 2h 13m 5s  memory 400.00 MiB
            CPU 0.50 cores over 20.00 s  rates over 2.00 s
build       0.1.0  all-MiniLM-L6-v2 on cpu

requests    100.5/s  2xx 90.5/s  4xx 0.00/s  5xx 10.0/s  2 active

                     /s       mean        p50        p99
searches          100.0    5.00 ms    5.00 ms    9.90 ms
  embed            5.00    1.20 ms    1.50 ms    1.99 ms

cache              hits  coalesced         /s    entries       held  evicted/s
results          75.0 %      5.0 %      102.0      1,234   3.00 MiB       1.50
embeddings            -          -          -          0        0 B       0.00

embedder    3 waiting  oldest 2.10 ms  2.50 texts a batch  padding 25.0 %
  texts     embedded 5.00/s  joined 0.50/s

depends on  documents ok  embedder ok  index ok
";
    assert_eq!(format!("\n{}\n", lines.join("\n")), expected);
    assert_fits(&lines);
}

#[test]
fn stores_are_shown_where_there_are_some() {
    let mut readiness = ready(&[("documents", "ok"), ("index", "does not answer")]);
    readiness.ready = false;
    let lines = shown("", PRODUCTION, &Ok(readiness));
    assert!(lines[0].contains("  not ready  "), "{}", lines[0]);
    let stores = lines.iter().position(|line| line.starts_with("depends on")).unwrap();
    assert_eq!(
        lines[stores..],
        [
            "depends on  documents ok  index: does not answer",
            "Postgres    primary 10.0.0.1:5432 usable  replica 10.0.0.1:5432 usable",
            "            replica 10.0.0.2:5432 not usable",
            "Milvus      failed 1.00/s  ok 20.0/s",
            "Redis       up  10.0/s",
            "outbox      1,200 waiting  1 set aside  update lag 2.50 s",
            "embedders   1 of 2 used",
            "breakers    index 0 open",
        ]
    );
    assert_fits(&lines);
}

#[test]
fn a_server_without_any_metric_that_is_known_is_shown() {
    let lines = shown("", "", &Err("no answer".to_owned()));
    assert_eq!(
        lines,
        [
            "server      http://127.0.0.1:8080  readiness unknown",
            "            CPU 0.50 cores over 20.00 s  rates over 2.00 s",
            "",
            "requests    0.00/s  2xx 0.00/s  4xx 0.00/s  5xx 0.00/s  - active",
            "",
            "                     /s       mean        p50        p99",
            "searches           0.00          -          -          -",
            "",
            "depends on  no answer",
        ]
    );
}

#[test]
fn a_restart_is_told_and_makes_no_rate_negative() {
    let earlier = EARLIER.replace(" 1000\nhttp", " 500\nhttp");
    let later = "process_start_time_seconds 1000\n\
                 http_server_request_duration_seconds_count{status=\"200\"} 4\n";
    let starting =
        Readiness { ready: false, phase: "starting".to_owned(), dependencies: BTreeMap::new() };
    let lines = shown(&earlier, later, &Ok(starting));
    assert!(lines[0].contains("  starting  restarted  "), "{}", lines[0]);
    assert!(lines.iter().any(|line| line.starts_with("requests    2.00/s")), "{lines:?}");
    let none = "searches           0.00          -          -          -";
    assert!(lines.iter().any(|line| line == none), "{lines:?}");
    assert!(!lines.iter().any(|line| line.starts_with("depends on")), "{lines:?}");
}

#[test]
fn what_the_server_says_cannot_steer_the_terminal() {
    let lines = shown("", "", &Ok(ready(&[("index", "\u{1b}[2Jgone\n")])));
    assert_eq!(lines.last().unwrap(), "depends on  index:  [2Jgone ");
}

#[test]
fn all_that_a_server_tells_of_is_shown() {
    let metrics = crate::metrics::Metrics::new();
    for tier in ["results", "embeddings"] {
        metrics.cache_entries.with_label_values(&[tier]).set(1);
        metrics.cache_requests.with_label_values(&[tier, "hit"]).inc();
    }
    for stage in STAGES {
        metrics.search_stage.with_label_values(&[stage]).observe(0.001);
    }
    for part in ["index", "cache"] {
        metrics.breaker_open.with_label_values(&[part, "0"]).set(0);
    }
    let route = "/v1/collections/{collection}/search";
    metrics.http_duration.with_label_values(&["GET", route, "200"]).observe(0.001);
    metrics.embed_texts.with_label_values(&["embedded"]).inc();
    metrics.milvus_requests.with_label_values(&["ok"]).inc();
    metrics.redis_requests.with_label_values(&["results", "hit"]).inc();
    metrics.postgres_usable.with_label_values(&["a", "primary"]).set(1);
    metrics.outbox_documents.with_label_values(&["waiting"]).set(0);
    metrics.remote_endpoint_up.with_label_values(&["a"]).set(1);
    metrics.build_info.with_label_values(&["0.1.0", "m", "h", "cpu"]).set(1.0);
    let text = lines_of(&metrics);
    let headings = "server,build,requests,searches,  embed,  index,  documents,  cache,  wait,\
                    results,embeddings,embedder,  texts,Postgres,Milvus,Redis,outbox,embedders,\
                    breakers";
    for heading in headings.split(',') {
        assert!(text.iter().any(|line| line.starts_with(heading)), "{heading}: {text:?}");
    }
}

fn lines_of(metrics: &crate::metrics::Metrics) -> Vec<String> {
    shown("", &metrics.encode().unwrap(), &Ok(ready(&[("index", "ok")])))
}
