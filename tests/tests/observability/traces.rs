//! Spans of a request, as a collector gets them.

use reqwest::Method;
use serde_json::json;
use sextant_tests::production::Stores;
use sextant_tests::{Answer, Options, Server, eventually, repository};

use super::collector::{Collector, attribute, hex, named};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";
const SEARCH: &str = "/v1/collections/exercises/search";
const ROUTE: &str = "POST /v1/collections/{collection}/search";

/// A search whose caller records its trace, or not.
async fn search(server: &Server, query: &str, recorded: bool) -> Answer {
    let flags = if recorded { "01" } else { "00" };
    let request = server
        .api
        .request(Method::POST, SEARCH)
        .header("traceparent", format!("00-{TRACE}-{CALLER}-{flags}"))
        .header("x-request-id", "asked-once")
        .json(&json!({"query": query}));
    server.api.send(request).await.unwrap()
}

fn recording(options: Options, collector: &Collector) -> Options {
    // None but those of callers who record theirs.
    options.set("traces.endpoint", &collector.url).set("traces.ratio", "0")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_search_is_told_stage_by_stage_with_the_batch_that_embedded_it() {
    let collector = Collector::start().await;
    let options = recording(Options::model(), &collector)
        .seed("exercises", &repository("deploy/samples/exercises.ndjson"));
    let server = Server::start(options).await;
    let answer = search(&server, "strong legs without a gym", true).await;
    let told = answer.headers["traceparent"].to_str().unwrap().to_owned();
    assert!(answer.status.is_success(), "{}", answer.text);
    let own = told.strip_prefix(&format!("00-{TRACE}-")).unwrap().strip_suffix("-01").unwrap();
    search(&server, "never to be told", false).await;
    // What is left is sent at the end.
    assert!(server.terminate().await.success());

    let spans = collector.of(TRACE);
    let root = named(&spans, ROUTE);
    assert_eq!((hex(&root.span_id).as_str(), hex(&root.parent_span_id).as_str()), (own, CALLER));
    assert_eq!(attribute(root, "sextant.request_id"), "asked-once");
    assert_eq!(attribute(root, "sextant.cache.status"), "miss");
    for stage in ["embed", "index", "documents"] {
        assert_eq!(named(&spans, stage).parent_span_id, root.span_id, "{stage}");
    }
    let (embed, batch) = (named(&spans, "embed"), named(&spans, "embed batch"));
    assert_eq!(batch.parent_span_id, embed.span_id);
    assert_eq!(batch.links.len(), 1);
    assert_eq!(batch.links[0].span_id, embed.span_id);
    assert!(batch.start_time_unix_nano >= embed.start_time_unix_nano);
    assert!(batch.end_time_unix_nano <= root.end_time_unix_nano);
    // One search of two, and no word of what was searched for.
    assert_eq!(collector.all().iter().filter(|span| span.name == ROUTE).count(), 1);
    assert!(!format!("{spans:?}").contains("strong legs"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_call_to_a_store_and_to_an_embedding_server_is_a_span_of_the_same_trace() {
    let collector = Collector::start().await;
    let stores = Stores::start().await;
    let embedder = Server::start(recording(Options::hash(), &collector)).await;
    let options = recording(stores.options(Options::hash()), &collector)
        .set("embedder.kind", "remote")
        .set("remote.endpoints", &json!([embedder.url]).to_string())
        // A busy machine is no reason to leave Redis alone.
        .set("redis.timeout_ms", "5000")
        .seed("exercises", &repository("deploy/samples/exercises.ndjson"));
    let server = Server::start(options).await;
    eventually("documents are found", async || {
        let answer = search(&server, "warm up", false).await;
        answer.body["hits"].as_array().is_some_and(|hits| !hits.is_empty()).then_some(())
    })
    .await;
    let answer = search(&server, "strong legs", true).await;
    assert!(answer.status.is_success(), "{}", answer.text);
    assert!(server.terminate().await.success());
    assert!(embedder.terminate().await.success());

    let spans = collector.of(TRACE);
    let root = named(&spans, ROUTE);
    let parent = |of: &str| spans.iter().find(|span| hex(&span.span_id) == of);
    for store in ["redis", "postgres", "milvus"] {
        let calls: Vec<_> = spans.iter().filter(|span| span.name == store).collect();
        assert!(!calls.is_empty(), "no call to {store}");
        for call in calls {
            assert!(parent(&hex(&call.parent_span_id)).is_some(), "{call:?}");
            assert!(call.start_time_unix_nano >= root.start_time_unix_nano);
        }
    }
    let of_index: Vec<_> = spans.iter().filter(|span| span.name == "milvus").collect();
    assert!(of_index.iter().all(|it| it.parent_span_id == named(&spans, "index").span_id));
    // From the batch over the wire into the other server.
    let batch = named(&spans, "embed batch");
    assert_eq!(batch.links[0].span_id, named(&spans, "embed").span_id);
    let calls: Vec<_> = spans.iter().filter(|it| it.name == "POST /v1/embeddings").collect();
    let (outer, inner) = (calls[0], calls[1]);
    assert_eq!(outer.parent_span_id, batch.span_id);
    assert_eq!(inner.parent_span_id, outer.span_id);
    assert_eq!(attribute(inner, "http.route"), "/v1/embeddings");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_problem_names_its_trace_and_a_bucket_of_the_histogram_one_of_its_own() {
    let collector = Collector::start().await;
    let server = Server::start(recording(Options::hash(), &collector)).await;
    let refused = search(&server, "no such collection", true).await;
    assert_eq!((refused.status.as_u16(), refused.problem()), (404, "not-found"));
    assert_eq!(refused.body["trace_id"], TRACE);
    let unknown = server.api.get("/v1/collections/none").await;
    let own = unknown.body["trace_id"].as_str().unwrap();
    assert!(unknown.headers["traceparent"].to_str().unwrap().contains(own));

    let scrape = async |accept: &str| {
        let request = server.api.request(Method::GET, "/metrics").header("accept", accept);
        server.api.send(request).await.unwrap()
    };
    let open = scrape("application/openmetrics-text;version=1.0.0,text/plain;q=0.5").await;
    assert!(open.headers["content-type"].to_str().unwrap().starts_with("application/openmetrics"));
    assert!(open.text.ends_with("# EOF\n"));
    let exemplar = format!("# {{trace_id=\"{TRACE}\"}}");
    let with: Vec<_> = open.text.lines().filter(|line| line.contains(&exemplar)).collect();
    assert_eq!(with.len(), 1, "{with:?}");
    assert!(with[0].contains("_bucket{") && with[0].contains("status=\"404\""), "{with:?}");
    assert!(!scrape("text/plain").await.text.contains(&exemplar));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_is_gone_costs_spans_and_nothing_else() {
    let gone = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        format!("http://{}", listener.local_addr().unwrap())
    };
    let options = Options::hash().set("traces.endpoint", &gone).set("traces.ratio", "1");
    let server = Server::start(options).await;
    assert!(server.api.get("/v1/collections").await.status.is_success());
    eventually("the spans are counted as lost", async || {
        let text = server.api.get("/metrics").await.text;
        let lost = text.lines().find_map(|line| {
            line.strip_prefix("sextant_spans_total{result=\"failed\"} ")?.parse::<u64>().ok()
        });
        lost.filter(|lost| *lost > 0)
    })
    .await;
    assert!(server.terminate().await.success());
}
