//! HTTP for this machine, from a thread of its own.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::TokioTimer;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::Error;

/// A thread that serves until it is dropped.
#[derive(Debug)]
pub(crate) struct Server {
    name: &'static str,
    /// Dropped to stop the thread.
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// `serve` ends when the sender of what it is given is gone.
    pub(crate) fn spawn<F: Future<Output = ()>>(
        name: &'static str,
        serve: impl FnOnce(oneshot::Receiver<()>) -> F + Send + 'static,
    ) -> Result<Self, Error> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(Error::Thread)?;
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name(name.into())
            .spawn(move || runtime.block_on(serve(stopped)))
            .map_err(Error::Thread)?;
        Ok(Self {
            name,
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            let thread = self.name;
            tracing::error!(
                thread,
                "a thread panicked: this is a defect, please report it"
            );
        }
    }
}

/// The next connection, and its place among the few that there are. `None`: there is
/// none for now.
pub(crate) async fn next<T, A>(
    places: &Arc<Semaphore>,
    accept: impl Future<Output = io::Result<(T, A)>>,
) -> Option<(T, OwnedSemaphorePermit)> {
    // The semaphore is never closed.
    let place = Arc::clone(places).acquire_owned().await.ok()?;
    match accept.await {
        Ok((stream, _)) => Some((stream, place)),
        Err(error) => {
            tracing::warn!(%error, "cannot accept a connection");
            tokio::time::sleep(Duration::from_secs(1)).await;
            None
        }
    }
}

/// Bounded in what it reads of a request before it is one, and in how long it waits for
/// that, on a new connection and between two requests.
pub(crate) fn http(silence: Duration) -> http1::Builder {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(silence)
        .max_buf_size(MAX_HEAD);
    http
}

/// How old a connection gets: whoever does not read is not waited for.
pub(crate) const AGE: Duration = Duration::from_secs(600);

/// A request's line and headers, in bytes.
const MAX_HEAD: usize = 8 * 1024;
