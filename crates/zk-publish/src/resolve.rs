//! Name resolution that outlives the server of names.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::client::legacy::connect::dns::{GaiResolver, Name};
use tokio::time::timeout;
use tower_service::Service;

/// The system's resolver; while it has no answer, or fails, the addresses count
/// that it gave last. Whoever has them by then still has to show the server's
/// certificate.
#[derive(Clone)]
pub(crate) struct Resolver<R = GaiResolver> {
    system: R,
    known: Arc<Mutex<Vec<SocketAddr>>>,
    patience: Duration,
}

impl Resolver {
    pub(crate) fn new() -> Self {
        Self::over(GaiResolver::new(), PATIENCE)
    }
}

impl<R> Resolver<R> {
    fn over(system: R, patience: Duration) -> Self {
        Self {
            system,
            known: Arc::default(),
            patience,
        }
    }
}

impl<R> Service<Name> for Resolver<R>
where
    R: Service<Name, Error = io::Error, Response: Iterator<Item = SocketAddr> + Send>,
    R::Future: Send + 'static,
{
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.system.poll_ready(cx)
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let looked_up = self.system.call(name);
        let (known, patience) = (Arc::clone(&self.known), self.patience);
        Box::pin(async move {
            let last = lock(&known).clone();
            let answer = if last.is_empty() {
                looked_up.await
            } else {
                match timeout(patience, looked_up).await {
                    Ok(answer) => answer,
                    Err(late) => Err(late.into()),
                }
            };
            match answer {
                Ok(addresses) => {
                    let addresses: Vec<_> = addresses.collect();
                    lock(&known).clone_from(&addresses);
                    Ok(addresses.into_iter())
                }
                Err(error) if last.is_empty() => Err(error),
                Err(error) => {
                    tracing::debug!(%error, "the name is not resolved; trying where it last led");
                    Ok(last.into_iter())
                }
            }
        })
    }
}

// No code that holds the lock can leave it half changed.
fn lock(known: &Mutex<Vec<SocketAddr>>) -> std::sync::MutexGuard<'_, Vec<SocketAddr>> {
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How long the system is waited for where there is something else to try. It
/// asks again after 5 s itself, in which a link may have come back.
const PATIENCE: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::future::{pending, ready};

    use super::*;

    /// What the system says to one question; `None`: nothing, ever.
    type Answer = Option<io::Result<Vec<SocketAddr>>>;

    #[derive(Clone)]
    struct System(Arc<Mutex<Vec<Answer>>>);

    impl Service<Name> for System {
        type Response = std::vec::IntoIter<SocketAddr>;
        type Error = io::Error;
        type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: Name) -> Self::Future {
            match self.0.lock().unwrap().remove(0) {
                Some(answer) => Box::pin(ready(answer.map(Vec::into_iter))),
                None => Box::pin(pending()),
            }
        }
    }

    async fn ask(resolver: &mut Resolver<System>) -> io::Result<Vec<SocketAddr>> {
        let addresses = resolver.call("gateway.example".parse().unwrap()).await;
        addresses.map(Iterator::collect)
    }

    #[tokio::test]
    async fn where_a_name_last_led_counts_while_nobody_resolves_it() {
        let [first, second] = [1, 2].map(|last| vec![SocketAddr::from(([192, 0, 2, last], 0))]);
        let fails = || Some(Err(io::Error::other("no server could be reached")));
        let answers = [
            fails(),
            Some(Ok(first.clone())),
            fails(),
            None,
            Some(Ok(second.clone())),
            fails(),
        ];
        let system = System(Arc::new(Mutex::new(answers.into())));
        let mut resolver = Resolver::over(system, Duration::ZERO);
        assert!(ask(&mut resolver).await.is_err());
        for expected in [&first, &first, &first, &second, &second] {
            assert_eq!(ask(&mut resolver).await.unwrap(), *expected);
        }
    }
}
