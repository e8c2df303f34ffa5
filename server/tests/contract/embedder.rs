//! What every embedder must do. The model itself is tested in `tests/embedder/`.

mod remote;

use std::sync::Arc;
use std::time::{Duration, Instant};

use sextant_server::adapters::embedder::hash::HashEmbedder;
use sextant_server::ports::{Class, Embedder, Embedding, Urgency};

async fn embed(embedder: &dyn Embedder, texts: &[&str], class: Class) -> Vec<Embedding> {
    let urgency = Urgency { class, deadline: Instant::now() + Duration::from_mins(1) };
    let texts = texts.iter().map(|text| Arc::from(*text)).collect();
    embedder.embed(texts, urgency).await.unwrap()
}

/// Runs every case; the embedder has no state that one could leave behind.
async fn suite(embedder: &dyn Embedder) {
    let model = embedder.model();
    assert_eq!(embedder.health(), Ok(()));
    assert!(embed(embedder, &[], Class::Bulk).await.is_empty());

    let texts = ["bend the knees", "push the floor away", "", "bend the knees"];
    let rows = embed(embedder, &texts, Class::Interactive).await;
    assert_eq!(rows.len(), texts.len(), "a row a text");
    for row in &rows {
        assert_eq!(row.vector.len(), model.version.dimension);
        let norm: f32 = row.vector.iter().map(|v| v * v).sum();
        assert!((norm - 1.0).abs() < 1e-4, "norm {norm}");
        assert!(!row.truncated);
    }
    assert_eq!(rows[0].vector, rows[3].vector, "equal texts, equal vectors");
    assert_ne!(rows[0].vector, rows[1].vector);

    let alone = embed(embedder, &["push the floor away"], Class::Bulk).await;
    let nearness: f32 = alone[0].vector.iter().zip(&*rows[1].vector).map(|(a, b)| a * b).sum();
    assert!(nearness > 0.9999, "the company in a batch does not matter: {nearness}");

    let long = "word ".repeat(model.max_tokens + 10);
    let rows = embed(embedder, &[&long], Class::Bulk).await;
    assert!(rows[0].truncated);
    assert!(rows[0].tokens <= model.max_tokens);
}

#[tokio::test]
async fn the_hash_embedder_keeps_the_contract() {
    suite(&HashEmbedder::new(32)).await;
}

#[cfg(feature = "torch")]
#[tokio::test]
async fn the_torch_embedder_keeps_the_contract() {
    use sextant_server::adapters::embedder::torch::{TorchEmbedder, TorchOptions};
    use sextant_server::metrics::Metrics;

    let model_dir = std::env::var_os("MODEL_DIR").expect("MODEL_DIR, which `make test` sets");
    let options = TorchOptions { model_dir: model_dir.into(), ..TorchOptions::default() };
    let load = move || TorchEmbedder::load(&options, Arc::new(Metrics::new()));
    let embedder = tokio::task::spawn_blocking(load).await.unwrap().unwrap();
    suite(&embedder).await;
}
