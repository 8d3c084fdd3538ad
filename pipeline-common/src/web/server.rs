//! Accepts connections, within limits, until it is asked to stop.

use std::{sync::Arc, time::Duration};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::JoinSet,
};

use crate::stage::{Result, StopFlag};

/// Connections at a time; 64 browsers open six each. Others wait to be accepted.
const CONNECTIONS: usize = 1024;
/// How long a connection may take for a request's head, and be idle between two.
const HEAD: Duration = Duration::from_secs(10);
/// How long an answer's receiver may take nothing of it.
const UNREAD: Duration = Duration::from_secs(30);
/// Bytes of a request's head, within a factor of four; an answer is read no further ahead of its receiver.
const BUFFER: usize = 64 << 10;
/// How long answers may go on after the server was asked to stop.
const FAREWELL: Duration = Duration::from_secs(3);
/// How often the stop flag is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// Pause after the system refused a connection, for want of file handles for instance.
const REFUSED: Duration = Duration::from_millis(100);

/// Serves until `stop` is set and the last answers are through.
pub(super) async fn serve(listener: TcpListener, router: Router, stop: &StopFlag) -> Result<()> {
    let (ending, ended) = watch::channel(false);
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = asked(stop) => break,
            accepted = accept(&listener, &places) => {
                if let Some((stream, place)) = accepted {
                    connections.spawn(connection(stream, place, router.clone(), ended.clone()));
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
    drop(listener);
    // Nobody listens where no connection is open.
    let _nobody = ending.send(true);
    let all = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(FAREWELL, all).await.is_err() {
        tracing::warn!("answers that were not through are cut off");
    }
    Ok(())
}

async fn asked(stop: &StopFlag) {
    while !stop.requested() {
        tokio::time::sleep(LOOK).await;
    }
}

/// The next connection, once there is a place for it.
async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> Option<(TcpStream, OwnedSemaphorePermit)> {
    let place = places.clone().acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => Some((stream, place)),
        Err(error) => {
            tracing::warn!("a connection failed: {error}");
            tokio::time::sleep(REFUSED).await;
            None
        }
    }
}

async fn connection(
    stream: TcpStream,
    _place: OwnedSemaphorePermit,
    router: Router,
    mut ended: watch::Receiver<bool>,
) {
    // Lines of a stream are small and wanted at once.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!("TCP_NODELAY: {error}");
    }
    let unread = UNREAD.as_millis() as u32;
    if let Err(error) = rustix::net::sockopt::set_tcp_user_timeout(&stream, unread) {
        tracing::debug!("TCP_USER_TIMEOUT: {error}");
    }
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD).max_buf_size(BUFFER);
    let service = TowerToHyperService::new(router);
    let mut talk = std::pin::pin!(http.serve_connection(TokioIo::new(stream), service));
    let end = tokio::select! {
        end = talk.as_mut() => end,
        () = async { drop(ended.wait_for(|ended| *ended).await) } => {
            talk.as_mut().graceful_shutdown();
            talk.await
        }
    };
    if let Err(error) = end {
        tracing::debug!("a connection ended: {error}");
    }
}
