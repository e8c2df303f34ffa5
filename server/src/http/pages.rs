//! The web page. Its files are part of the binary.

use axum::Router;
use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::get;

use super::AppState;

/// Nothing from elsewhere, nothing inline: a document that holds markup cannot run as a script.
const POLICY: &str = "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; \
                      base-uri 'none'; form-action 'self'";

const FILES: &[(&str, &str, &str)] = &[
    ("/", "text/html; charset=utf-8", include_str!("../../web/index.html")),
    ("/app.js", "text/javascript; charset=utf-8", include_str!("../../web/app.js")),
    ("/style.css", "text/css; charset=utf-8", include_str!("../../web/style.css")),
    ("/favicon.svg", "image/svg+xml", include_str!("../../web/favicon.svg")),
];

pub fn router() -> Router<AppState> {
    FILES.iter().fold(Router::new(), |router, (path, content_type, text)| {
        let headers = [
            (header::CONTENT_TYPE, *content_type),
            (header::CONTENT_SECURITY_POLICY, POLICY),
            (header::REFERRER_POLICY, "no-referrer"),
            (header::CACHE_CONTROL, "no-cache"),
        ];
        router.route(path, get(move || async move { (headers, *text).into_response() }))
    })
}
