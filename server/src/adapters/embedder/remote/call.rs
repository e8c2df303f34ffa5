//! A call until it is answered, and its rows.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use opentelemetry::trace::SpanContext;
use tokio::sync::oneshot;

use super::queue::Waiter;
use crate::ports::{EmbedError, Embedding};
use crate::spans;

pub type Answer = Result<Vec<Embedding>, EmbedError>;

/// A text of a call.
pub struct Row {
    call: Arc<Mutex<Option<Open>>>,
    index: usize,
    span: Option<SpanContext>,
}

struct Open {
    answer: oneshot::Sender<Answer>,
    rows: Vec<Option<Embedding>>,
    missing: usize,
}

/// One row per text, and where the answer comes once all have theirs or one has failed.
pub fn open(texts: &[Arc<str>]) -> (Vec<(Arc<str>, Row)>, oneshot::Receiver<Answer>) {
    let (answer, receiver) = oneshot::channel();
    let open = Open { answer, rows: vec![None; texts.len()], missing: texts.len() };
    let call = Arc::new(Mutex::new(Some(open)));
    let span = spans::current();
    let row = |(index, text)| {
        let row = Row { call: Arc::clone(&call), index, span: span.clone() };
        (Arc::clone(text), row)
    };
    (texts.iter().enumerate().map(row).collect(), receiver)
}

impl Row {
    fn open(&self) -> MutexGuard<'_, Option<Open>> {
        self.call.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn fulfil(&self, row: &Embedding) {
        let mut call = self.open();
        let Some(open) = call.as_mut() else { return };
        if open.rows[self.index].replace(row.clone()).is_none() {
            open.missing -= 1;
        }
        if open.missing == 0
            && let Some(open) = call.take()
        {
            // Who asked may have left meanwhile.
            let _ = open.answer.send(Ok(open.rows.into_iter().flatten().collect()));
        }
    }

    /// Answers the whole call; its other rows are gone by that.
    pub fn fail(&self, error: &EmbedError) {
        if let Some(open) = self.open().take() {
            let _ = open.answer.send(Err(error.clone()));
        }
    }
}

impl Waiter for Row {
    fn is_gone(&self) -> bool {
        self.open().as_ref().is_none_or(|open| open.answer.is_closed())
    }

    fn span(&self) -> Option<&SpanContext> {
        self.span.as_ref()
    }
}
