//! Being told of work: `NOTIFY` from whichever server committed rows of the outbox.

use std::sync::Arc;

use sqlx::postgres::{PgListener, PgPoolOptions};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::nodes::{Error, Nodes};
use crate::metrics::Metrics;

/// Raises `work` with every notification, for ever. While listening fails those who wait fall back
/// to looking now and then.
pub async fn listen(nodes: Arc<Nodes>, work: watch::Sender<u64>, metrics: Arc<Metrics>) {
    loop {
        if let Err(error) = listen_once(&nodes, &work).await {
            tracing::debug!(?error, "cannot listen for work");
            metrics.background_failures.with_label_values(&["postgres_listen"]).inc();
        }
        sleep(nodes.probe_period()).await;
    }
}

/// Listens on one connection until it ends or the primary is another node.
async fn listen_once(nodes: &Nodes, work: &watch::Sender<u64>) -> Result<(), Error> {
    let (index, options) = nodes.primary_options().await?;
    let connect = async {
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .acquire_timeout(nodes.connect_timeout())
            .max_lifetime(None)
            .idle_timeout(None)
            .connect_lazy_with(options);
        let mut listener = PgListener::connect_with(&pool).await?;
        listener.eager_reconnect(false);
        listener.listen("sextant_outbox").await?;
        Ok(listener)
    };
    let mut listener = timeout(nodes.connect_timeout(), connect)
        .await
        .map_err(|elapsed| Error::Unavailable(elapsed.into()))?
        .map_err(Error::Statement)?;
    // What was committed before this connection listened.
    work.send_modify(|count| *count += 1);
    let told = async {
        while listener.try_recv().await?.is_some() {
            work.send_modify(|count| *count += 1);
        }
        Ok(())
    };
    tokio::select! {
        ended = told => ended.map_err(Error::Statement),
        () = nodes.primary_moved(index) => Ok(()),
    }
}
