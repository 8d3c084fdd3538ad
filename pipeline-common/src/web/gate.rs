//! A bounded queue before what only one request at a time may use.

use std::sync::Arc;

use axum::http::StatusCode;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::answer::{Answer, Refusal};

/// Seconds after which a refused request may try again.
const RETRY: u32 = 5;

/// Lets one in at a time; some may wait, the others are refused.
#[derive(Clone, Debug)]
pub(super) struct Gate {
    places: Arc<Semaphore>,
    turn: Arc<Semaphore>,
    what: &'static str,
}

/// A place in the queue.
#[derive(Debug)]
pub(super) struct Place {
    place: OwnedSemaphorePermit,
    turn: Arc<Semaphore>,
}

/// The right to go on; others follow when it is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    _place: OwnedSemaphorePermit,
    _turn: Option<OwnedSemaphorePermit>,
}

impl Gate {
    pub fn new(what: &'static str, waiting: usize) -> Self {
        let semaphore = |n| Arc::new(Semaphore::new(n));
        Self { places: semaphore(waiting + 1), turn: semaphore(1), what }
    }

    /// A place in the queue, if there is one.
    pub fn enter(&self) -> Answer<Place> {
        let place = self.places.clone().try_acquire_owned().map_err(|_| {
            let what = format!("too many {} are waiting already", self.what);
            Refusal::new(StatusCode::TOO_MANY_REQUESTS, what)
                .hint("try again when one has ended; EXPLORE_QUEUE sets how many may wait")
                .retry(RETRY)
        })?;
        Ok(Place { place, turn: self.turn.clone() })
    }
}

impl Place {
    /// Waits until all before have ended.
    pub async fn turn(self) -> Turn {
        // The semaphore is never closed.
        Turn { _place: self.place, _turn: self.turn.acquire_owned().await.ok() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_goes_some_wait_and_the_rest_are_refused() {
        let gate = Gate::new("generations", 1);
        let first = gate.enter().unwrap().turn().await;
        let second = gate.enter().unwrap();
        let refused = gate.enter().unwrap_err();
        assert_eq!((refused.status.as_u16(), refused.retry), (429, Some(RETRY)));
        drop(first);
        let second = second.turn().await;
        gate.enter().unwrap();
        drop(second);
        assert_eq!(gate.places.available_permits(), 2);
    }
}
