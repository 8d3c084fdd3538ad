//! Batches, read ahead by a thread of their own: training does not wait for the disk.

use std::{
    ops::Range,
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread::Scope,
};

use crate::{sae::rows::Rows, shard::Order};

/// Batches that are read ahead.
const AHEAD: usize = 2;
/// Batches in memory: those, one that is being read, and one that is in use.
pub const BATCHES: u64 = AHEAD as u64 + 2;

/// One batch, scaled.
#[derive(Debug, Default)]
pub struct Loaded {
    /// `[batch, d_in]`.
    pub input: Vec<f32>,
    /// A transcoder's target, `[batch, d_out]`.
    pub target: Option<Vec<f32>>,
}

/// The batches of a training, in order.
pub struct Loader {
    loaded: Receiver<Loaded>,
    used: SyncSender<Loaded>,
}

impl Loader {
    /// Begins to read batches `batches` of `rows_a_batch` rows in the order of `order`.
    pub fn start<'scope>(
        scope: &'scope Scope<'scope, '_>,
        rows: &'scope Rows,
        mut order: Order,
        batches: Range<u64>,
        rows_a_batch: usize,
    ) -> Self {
        let (give, loaded) = sync_channel(AHEAD);
        let (used, take) = sync_channel::<Loaded>(AHEAD + 2);
        scope.spawn(move || {
            let mut numbers = vec![];
            for batch in batches {
                let mut buffers = take.try_recv().unwrap_or_default();
                let position = batch * rows_a_batch as u64;
                order.fetch(position).into_iter().for_each(|block| rows.fetch(block));
                order.batch(position, rows_a_batch, &mut numbers);
                rows.input.gather(&numbers, &mut buffers.input);
                if let Some(target) = &rows.target {
                    target.gather(&numbers, buffers.target.get_or_insert_default());
                }
                // Nobody waits for it any more once the training has stopped.
                if give.send(buffers).is_err() {
                    return;
                }
            }
        });
        Self { loaded, used }
    }

    /// The next batch; `None` behind the last.
    pub fn next(&self) -> Option<Loaded> {
        self.loaded.recv().ok()
    }

    /// Gives a batch's buffers back.
    pub fn reuse(&self, buffers: Loaded) {
        // Without room, or a reader, they are simply dropped.
        self.used.try_send(buffers).unwrap_or_default();
    }
}
