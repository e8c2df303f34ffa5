//! How the tests of the router ask and what they are answered, wherever the server is: the module
//! above says how a request is sent.

use axum::body::Body;
use axum::http::{HeaderMap, Method, Request, StatusCode, Uri};
use serde_json::{Value, json};

use super::{Setup, TestApp};

pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub bytes: Vec<u8>,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&self.bytes)))
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    #[track_caller]
    pub fn problem(&self, status: u16, kind: &str) -> Value {
        assert_eq!(self.status, status, "{}", String::from_utf8_lossy(&self.bytes));
        assert_eq!(self.header("content-type"), "application/problem+json");
        let problem = self.json();
        assert_eq!(problem["type"], format!("https://sextant.dev/problems/{kind}"));
        assert_eq!(problem["request_id"], self.header("x-request-id"));
        problem
    }

    #[track_caller]
    pub fn ok(self) -> Value {
        assert!(self.status.is_success(), "{}", String::from_utf8_lossy(&self.bytes));
        if self.bytes.is_empty() { Value::Null } else { self.json() }
    }
}

impl TestApp {
    pub async fn new() -> Self {
        Self::with(Setup::default()).await
    }

    /// A collection `gym` with a few exercises.
    pub async fn gym() -> Self {
        Self::gym_with(Setup::default()).await
    }

    pub async fn gym_with(setup: Setup) -> Self {
        let app = Self::with(setup).await;
        app.put("/v1/collections/gym", json!({})).await.ok();
        app.post("/v1/collections/gym/documents", exercises()).await.ok();
        app
    }

    pub async fn call(&self, method: Method, path: &str, body: Option<Value>) -> Answer {
        let request = Request::builder().method(method).uri(path);
        let request = match body {
            Some(body) => request
                .header("content-type", "application/json")
                .body(Body::from(body.to_string())),
            None => request.body(Body::empty()),
        };
        self.send(request.unwrap()).await
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.call(Method::GET, path, None).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Answer {
        self.call(Method::POST, path, Some(body)).await
    }

    pub async fn put(&self, path: &str, body: Value) -> Answer {
        self.call(Method::PUT, path, Some(body)).await
    }

    /// Searches the collection `gym`.
    pub async fn search(&self, body: Value) -> Answer {
        self.post("/v1/collections/gym/search", body).await
    }
}

pub fn exercises() -> Value {
    json!([
        {"id": "squat", "name": "Squat", "description": "Bend the knees and stand up.",
         "muscle_groups": ["quadriceps", "glutes"], "level": "beginner", "minutes": 5, "unilateral": false},
        {"id": "lunge", "name": "Lunge", "description": "Step forward and bend both knees.",
         "muscle_groups": ["quadriceps"], "level": "beginner", "minutes": 6, "unilateral": true},
        {"id": "press-up", "name": "Press-up", "description": "Push the floor away.",
         "muscle_groups": ["chest", "triceps"], "level": "beginner", "minutes": 4, "unilateral": false},
        {"id": "bench-press", "name": "Bench press", "description": "Push a bar up from the chest.",
         "muscle_groups": ["chest"], "level": "advanced", "minutes": 12.5, "unilateral": false},
        {"id": "plank", "name": "Plank", "description": "Hold still on the elbows.",
         "muscle_groups": ["core"], "level": "intermediate", "minutes": 3},
    ])
}

pub fn ids(found: &Value) -> Vec<&str> {
    found["hits"].as_array().unwrap().iter().map(|hit| hit["id"].as_str().unwrap()).collect()
}

pub fn paths(problem: &Value) -> Vec<&str> {
    let errors = problem["errors"].as_array().unwrap();
    errors.iter().map(|error| error["path"].as_str().unwrap()).collect()
}

pub fn percent_encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |encoded, byte| format!("{encoded}%{byte:02X}"))
}

/// The address of a write that is answered when searches see it.
pub fn waiting(uri: &Uri) -> Uri {
    let separator = if uri.query().is_some() { '&' } else { '?' };
    format!("{uri}{separator}wait=true").parse().unwrap()
}
