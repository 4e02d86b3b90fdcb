use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};
use std::{fmt, io, mem};

use tokio::sync::{Notify, Semaphore};
use tracing::{debug, info};
use zk_store::Store;

use crate::config::Limits;
use crate::counters::{Counters, Meters};
use crate::tls::Tls;

/// All of the gateway but its sockets: the store, TLS, the limits and the
/// counts. Clones are handles to the same.
#[derive(Clone)]
pub struct Gateway(Arc<Inner>);

struct Inner {
    store: Store,
    tls: RwLock<Tls>,
    limits: Limits,
    meters: Meters,
    places: Semaphore,
    devices: Mutex<HashMap<String, VecDeque<Arc<Notify>>>>,
    refusals: Mutex<Refusals>,
}

/// Refused connections that the log does not have.
#[derive(Default)]
struct Refusals {
    logged: Option<Instant>,
    since: u64,
}

impl Gateway {
    /// A gateway that stores in `store`, whose tables exist.
    pub fn new(store: Store, tls: Tls, limits: Limits) -> Self {
        Self(Arc::new(Inner {
            store,
            tls: RwLock::new(tls),
            meters: Meters::default(),
            places: Semaphore::new(limits.requests),
            devices: Mutex::default(),
            refusals: Mutex::default(),
            limits,
        }))
    }

    /// What was counted so far.
    pub fn counters(&self) -> Counters {
        self.0.meters.read()
    }

    /// The TLS side in use.
    pub fn tls(&self) -> Tls {
        self.0
            .tls
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Takes other certificates for connections that begin from now on. Those
    /// that are open go on until they reach their age.
    pub fn set_tls(&self, tls: Tls) {
        *self.0.tls.write().unwrap_or_else(PoisonError::into_inner) = tls;
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.0.limits
    }

    pub(crate) fn meters(&self) -> &Meters {
        &self.0.meters
    }

    /// Room for messages in memory.
    pub(crate) fn places(&self) -> &Semaphore {
        &self.0.places
    }

    pub(crate) fn store(&self) -> &Store {
        &self.0.store
    }

    /// Logs that a stranger was refused, but not every one of them: whoever is
    /// nobody must not fill the log.
    pub(crate) fn log_refusal(&self, peer: SocketAddr, error: &io::Error) {
        let mut refusals = self
            .0
            .refusals
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let seldom = refusals.logged.is_none_or(|at| at.elapsed() > SELDOM);
        let others = if seldom {
            refusals.logged = Some(Instant::now());
            mem::take(&mut refusals.since)
        } else {
            refusals.since += 1;
            0
        };
        drop(refusals);
        if seldom {
            info!(%peer, %error, others, "refused a connection; others since the last such line");
        } else {
            debug!(%peer, %error, "refused a connection");
        }
    }

    /// Enters a connection of the device with this principal. When that makes
    /// too many, the oldest is told to close.
    pub(crate) fn enter(&self, principal: &str) -> Entry {
        let close = Arc::new(Notify::new());
        let mut devices = self.devices();
        let connections = devices.entry(principal.to_owned()).or_default();
        connections.push_back(Arc::clone(&close));
        let too_many = connections.len() > self.0.limits.connections_per_device;
        drop(devices);
        if too_many {
            self.displace(principal);
        }
        self.meters().count(|counters| {
            counters.connections += 1;
            counters.connections_open += 1;
        });
        Entry {
            gateway: self.clone(),
            principal: principal.to_owned(),
            close,
        }
    }

    /// Tells the oldest connection of a device to close, if it has any, in favour
    /// of a newer one.
    pub(crate) fn displace(&self, principal: &str) {
        let oldest = self
            .devices()
            .get_mut(principal)
            .and_then(VecDeque::pop_front);
        if let Some(oldest) = oldest {
            oldest.notify_one();
            self.meters().count(|counters| counters.displaced += 1);
        }
    }

    fn devices(&self) -> MutexGuard<'_, HashMap<String, VecDeque<Arc<Notify>>>> {
        self.0
            .devices
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gateway")
            .field("limits", self.limits())
            .finish_non_exhaustive()
    }
}

/// A connection in the list of its device, until dropped.
pub(crate) struct Entry {
    gateway: Gateway,
    principal: String,
    close: Arc<Notify>,
}

impl Entry {
    /// Returns when a newer connection takes this one's place.
    pub(crate) async fn displaced(&self) {
        self.close.notified().await;
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut devices = self.gateway.devices();
        if let Some(connections) = devices.get_mut(&self.principal) {
            connections.retain(|other| !Arc::ptr_eq(other, &self.close));
            if connections.is_empty() {
                devices.remove(&self.principal);
            }
        }
        drop(devices);
        self.gateway
            .meters()
            .count(|counters| counters.connections_open -= 1);
    }
}

/// So long after one refusal the next is logged.
const SELDOM: Duration = Duration::from_secs(60);
