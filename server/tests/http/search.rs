use axum::body::Body;
use axum::http::Request;
use serde_json::{Value, json};
use sextant_server::http::SearchResponse;

use crate::app::{TestApp, ids, paths, percent_encoded};

#[tokio::test]
async fn a_search_finds_by_meaning_by_words_and_by_both() {
    let app = TestApp::gym().await;
    for mode in ["dense", "lexical", "hybrid"] {
        let found = app.search(json!({"query": "hold still", "mode": mode})).await.ok();
        assert_eq!(ids(&found)[0], "plank", "{mode}");
        assert_eq!(found["mode"], mode);
    }
    let lexical = app.search(json!({"query": "knees", "mode": "lexical"})).await.ok();
    assert_eq!(lexical["hits"].as_array().unwrap().len(), 2);
    let dense = app.search(json!({"query": "knees"})).await.ok();
    assert_eq!(dense["hits"].as_array().unwrap().len(), 5, "every document has some nearness");
}

#[tokio::test]
async fn the_answer_has_the_documented_shape() {
    let app = TestApp::gym().await;
    let answer = app
        .search(json!({"query": "push", "mode": "hybrid", "snippet": true, "explain": true,
            "facets": ["level"]}))
        .await;
    assert!(answer.header("server-timing").contains("index;dur="));
    let json = answer.json();
    let typed: SearchResponse = serde_json::from_value(json.clone()).unwrap();
    assert_eq!(typed.request_id, answer.header("x-request-id"));
    assert_eq!(json["index"]["collection"], "gym");
    assert_eq!(json["degraded"], false);
    assert_eq!(json["next_cursor"], Value::Null);
    let hit = &json["hits"][0];
    assert!(hit["snippet"].as_str().unwrap().contains("Push"));
    assert!(hit["document"]["muscle_groups"].is_array());
    assert!(hit["explain"]["lexical"]["rank"].is_number());
    assert_eq!(json["facets"]["level"][0], json!({"value": "beginner", "count": 3}));
    // The typed form, from which the OpenAPI description is made, has the same members.
    let members = |value: &Value| {
        let mut names: Vec<String> = value.as_object().unwrap().keys().cloned().collect();
        names.retain(|name| name != "query_truncated"); // left out when false
        names.sort_unstable();
        names
    };
    let again = serde_json::to_value(&typed).unwrap();
    assert_eq!(members(&again), members(&json));
    assert_eq!(members(&again["hits"][0]), members(&json["hits"][0]));
}

#[tokio::test]
async fn filters_narrow_every_mode() {
    let app = TestApp::gym().await;
    let filter = json!({"must": [{"field": "muscle_groups", "in": ["chest"]}],
        "must_not": [{"field": "level", "eq": "advanced"}]});
    for mode in ["dense", "lexical", "hybrid"] {
        let found = app.search(json!({"query": "push", "mode": mode, "filter": filter})).await.ok();
        assert_eq!(ids(&found), ["press-up"], "{mode}");
    }
    let short = json!({"must": [{"field": "minutes", "gt": 5, "lte": 12.5}]});
    let found = app.search(json!({"query": "knees", "filter": short})).await.ok();
    let mut found = ids(&found);
    found.sort_unstable();
    assert_eq!(found, ["bench-press", "lunge"]);
    let absent = json!({"must": [{"field": "unilateral", "exists": false}]});
    let found = app.search(json!({"query": "knees", "filter": absent})).await.ok();
    assert_eq!(ids(&found), ["plank"]);
}

#[tokio::test]
async fn a_facet_is_not_narrowed_by_a_condition_on_itself() {
    let app = TestApp::gym().await;
    let filter = json!({"must": [{"field": "level", "in": ["advanced"]},
        {"field": "muscle_groups", "in": ["chest"]}]});
    let found = app
        .search(json!({"query": "push", "filter": filter, "facets": ["level", "muscle_groups"]}))
        .await
        .ok();
    let level = json!([{"value": "advanced", "count": 1}, {"value": "beginner", "count": 1}]);
    assert_eq!(found["facets"]["level"], level);
    assert_eq!(found["facets"]["muscle_groups"], json!([{"value": "chest", "count": 1}]));
}

#[tokio::test]
async fn pages_follow_each_other_without_gaps_or_repeats() {
    let app = TestApp::gym().await;
    for mode in ["dense", "hybrid"] {
        let mut seen: Vec<String> = Vec::new();
        let mut cursor = Value::Null;
        loop {
            let page = app
                .search(json!({"query": "bend knees", "mode": mode, "limit": 2, "cursor": cursor}))
                .await
                .ok();
            seen.extend(ids(&page).iter().map(ToString::to_string));
            cursor = page["next_cursor"].clone();
            if cursor.is_null() {
                break;
            }
        }
        let whole = app.search(json!({"query": "bend knees", "mode": mode})).await.ok();
        assert_eq!(seen, ids(&whole), "{mode}");
    }
}

#[tokio::test]
async fn paging_reaches_every_hit_of_a_larger_collection() {
    let app = TestApp::new().await;
    app.put("/v1/collections/gym", json!({})).await.ok();
    let documents: Vec<Value> = (0..250)
        .map(|i| json!({"id": format!("{i:03}"), "name": format!("bend {} {}", i % 7, i % 11)}))
        .collect();
    app.post("/v1/collections/gym/documents", json!(documents)).await.ok();
    for mode in ["dense", "lexical", "hybrid"] {
        let mut seen = std::collections::HashSet::new();
        let mut cursor = Value::Null;
        loop {
            let body = json!({"query": "bend 3", "mode": mode, "limit": 60, "cursor": cursor});
            let page = app.search(body).await.ok();
            assert!(ids(&page).iter().all(|id| seen.insert((*id).to_owned())), "{mode} repeats");
            cursor = page["next_cursor"].clone();
            if cursor.is_null() {
                break;
            }
        }
        assert_eq!(seen.len(), 250, "{mode}");
    }
}

#[tokio::test]
async fn a_cursor_of_another_search_is_refused() {
    let app = TestApp::gym().await;
    let page = app.search(json!({"query": "knees", "limit": 1})).await.ok();
    let cursor = &page["next_cursor"];
    let answer = app.search(json!({"query": "push", "limit": 1, "cursor": cursor})).await;
    assert_eq!(paths(&answer.problem(422, "invalid")), ["cursor"]);
    let answer = app.search(json!({"query": "push", "cursor": "' OR 1=1"})).await;
    assert_eq!(paths(&answer.problem(422, "invalid")), ["cursor"]);
}

#[tokio::test]
async fn min_score_leaves_weak_hits_out() {
    let app = TestApp::gym().await;
    let all = app.search(json!({"query": "knees"})).await.ok();
    let second = all["hits"][1]["score"].as_f64().unwrap();
    let best = app.search(json!({"query": "knees", "min_score": second})).await.ok();
    assert_eq!(best["hits"].as_array().unwrap().len(), 2, "the bound itself is in");
}

#[tokio::test]
async fn every_wrong_field_is_named_at_once() {
    let app = TestApp::gym().await;
    let answer = app
        .search(json!({"query": " ", "limit": 0, "facets": ["levle", "minutes"],
            "filter": {"must": [{"field": "minutes", "eq": "x"}]}, "cursor": "?"}))
        .await;
    let problem = answer.problem(422, "invalid");
    let expected = ["query", "limit", "facets[0]", "facets[1]", "filter.must[0].eq", "cursor"];
    assert_eq!(paths(&problem), expected);
    assert!(problem["errors"][2]["message"].as_str().unwrap().contains("\"level\""));

    let unknown = app.search(json!({"query": "x", "limits": 3})).await.problem(422, "invalid");
    assert_eq!(paths(&unknown), ["limits"]);
    assert!(unknown["detail"].as_str().unwrap().contains("\"limit\""));
    let wrong = app.search(json!({"query": 7})).await.problem(422, "invalid");
    assert_eq!(paths(&wrong), ["query"]);
    app.search(json!({"query": "x".repeat(5_000)})).await.problem(422, "invalid");
}

#[tokio::test]
async fn a_body_that_is_not_json_is_refused_as_such() {
    let app = TestApp::gym().await;
    let send = |kind: &'static str, body: &'static str| {
        let request = Request::post("/v1/collections/gym/search").header("content-type", kind);
        app.send(request.body(Body::from(body)).unwrap())
    };
    send("application/json", "{\"query\":").await.problem(400, "malformed");
    send("text/plain", "{\"query\":\"x\"}").await.problem(415, "unsupported-media-type");
}

#[tokio::test]
async fn get_and_post_give_the_same_hits() {
    let app = TestApp::gym().await;
    let filter = r#"{"must":[{"field":"level","eq":"beginner"}]}"#;
    let query = percent_encoded(filter);
    let got = app
        .get(&format!(
            "/v1/collections/gym/search?query=bend+knees&limit=2&mode=hybrid&facets=level,unilateral&filter={query}&explain=true"
        ))
        .await
        .ok();
    let posted = app
        .search(json!({"query": "bend knees", "limit": 2, "mode": "hybrid", "explain": true,
            "facets": ["level", "unilateral"],
            "filter": serde_json::from_str::<Value>(filter).unwrap()}))
        .await
        .ok();
    assert_eq!(got["hits"], posted["hits"]);
    assert_eq!(got["facets"], posted["facets"]);
    assert_eq!(posted["cache"]["status"], "hit");
    let answer = app.get("/v1/collections/gym/search?query=x&limit=ten").await;
    assert_eq!(paths(&answer.problem(422, "invalid")), ["limit"]);
    let answer = app.get("/v1/collections/gym/search?query=x&query=y").await;
    assert_eq!(paths(&answer.problem(422, "invalid")), ["query"]);
    let answer = app.get("/v1/collections/gym/search?query=x&quary=y").await;
    assert_eq!(paths(&answer.problem(422, "invalid")), ["quary"]);
}

#[tokio::test]
async fn words_of_a_query_language_are_only_words() {
    let app = TestApp::gym().await;
    for query in ["name:squat AND (", "\"knees", "*", "-push", "a OR 1=1 --", "[x TO y]", "\\"] {
        for mode in ["lexical", "hybrid"] {
            app.search(json!({"query": query, "mode": mode})).await.ok();
        }
    }
}
