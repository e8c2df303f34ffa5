//! Batches of small shapes, recorded for a GPU. A batch runs in the smallest recording that it fits.

use std::sync::Arc;

use tch::{TchError, Tensor};

use super::cuda::{Graph, Pool, upload};
use super::layout::{Batch, in_one_piece, sizes};
use super::model::Bert;

/// What recordings have room for. Above, the kernels run longer than it takes to start them.
const TOKENS: [usize; 7] = [16, 32, 64, 128, 256, 512, 1024];
const TEXTS: [usize; 3] = [1, 8, 64];

/// Of one worker: they share memory, so that only one may run at a time.
#[derive(Default)]
pub struct Recordings(Vec<Recording>);

struct Recording {
    tokens: usize,
    texts: usize,
    numbers: Tensor,
    vectors: Tensor,
    graph: Graph,
}

impl Recordings {
    /// Those of a model on a GPU, on this thread's stream.
    pub fn new(bert: &Bert) -> Result<Self, TchError> {
        let pool = Pool::new()?;
        let shapes = TOKENS.iter().flat_map(|&tokens| TEXTS.map(|texts| (tokens, texts)));
        // A text has a token, and beside the texts there is one of what room they leave.
        let shapes = shapes.filter(|(tokens, texts)| texts < tokens);
        let record = |(tokens, texts)| Recording::new(bert, pool, tokens, texts);
        Ok(Self(shapes.map(record).collect::<Result<_, _>>()?))
    }

    /// The vectors of texts, or `None` for more than there is a recording of.
    pub fn embed(
        &self,
        bert: &Bert,
        texts: &[Arc<[u32]>],
    ) -> Option<Result<Vec<Arc<[f32]>>, TchError>> {
        let recording = self.for_texts(texts)?;
        Some(recording.run(texts).and_then(|vectors| bert.rows_of(&vectors, texts.len())))
    }

    /// Tokens that the recording for such texts has, if there is one.
    pub fn tokens(&self, texts: &[Arc<[u32]>]) -> Option<usize> {
        self.for_texts(texts).map(|recording| recording.tokens)
    }

    fn for_texts(&self, texts: &[Arc<[u32]>]) -> Option<&Recording> {
        let (tokens, _) = sizes(texts);
        // One token is left for the text behind them.
        self.0.iter().find(|it| tokens < it.tokens && texts.len() <= it.texts)
    }
}

impl Recording {
    fn new(bert: &Bert, pool: Pool, tokens: usize, texts: usize) -> Result<Self, TchError> {
        let numbers = in_one_piece(&[Arc::from([0])], tokens, texts + 1);
        let numbers = upload(&Tensor::f_from_slice(&numbers)?, bert.device())?;
        let batch = Batch::in_one_piece(&numbers, tokens, tokens)?;
        // What is made at the first run of a shape cannot be recorded.
        drop(bert.forward(&batch)?);
        let (graph, vectors) = Graph::record(pool, || bert.forward(&batch))?;
        Ok(Self { tokens, texts, numbers, vectors, graph })
    }

    fn run(&self, texts: &[Arc<[u32]>]) -> Result<Tensor, TchError> {
        let numbers = in_one_piece(texts, self.tokens, self.texts + 1);
        self.numbers
            .shallow_clone()
            .f_copy_(&upload(&Tensor::f_from_slice(&numbers)?, self.numbers.device())?)?;
        self.graph.replay()?;
        Ok(self.vectors.shallow_clone())
    }
}
