use reqwest::StatusCode;

use super::page::Page;
use super::situation::Situation;

const HALF: usize = 10;

pub async fn stuck(page: Page) {
    let mut situation = Situation::without_documents().await;
    situation.start_server("0").await;
    assert_eq!(situation.write(0..2 * HALF, "").await, StatusCode::ACCEPTED);
    // A worker took some and died, with a long lease; others failed too often.
    let claimed = format!(
        "UPDATE outbox SET claimed_by = 'dead', claimed_version = version,
             due_at = now() + interval '1 hour' WHERE id < '{HALF:05}'"
    );
    situation.sql(&claimed).await;
    let set_aside = "UPDATE outbox SET set_aside_at = now(), attempts = 5, reason = 'no reason'
         WHERE claimed_by IS NULL";
    situation.sql(set_aside).await;
    situation.start_server("1").await;
    situation.metric("sextant_outbox_documents{state=\"waiting\"}", &HALF.to_string()).await;
    situation.metric("sextant_outbox_documents{state=\"set-aside\"}", &HALF.to_string()).await;
    page.follow(|| situation.stores.primary.shell(), situation.variables()).await;
    situation.finds(2 * HALF).await;
}
