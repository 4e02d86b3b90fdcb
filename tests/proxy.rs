//! The network between agent and gateway, and what can be wrong with it.

use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::sleep;

/// One of the two ways on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Requests.
    ToGateway,
    /// Answers.
    ToDevice,
}

/// What is wrong with the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// No connection can be made; those that are there go on.
    Refuse,
    /// What is sent this way is taken and lost, and nobody hears of it. A
    /// connection that lost something stays that way.
    Swallow(Way),
    /// Neither way does anything arrive any more. The device is not even told that
    /// the gateway has gone. A connection that was used meanwhile stays that way,
    /// half-open, until the device gives it up.
    Silence,
    /// What is sent this way waits until the fault is over.
    Stall(Way),
    /// All is late.
    Delay(Duration),
    /// After so many bytes more this way, connections are reset.
    CutAfter(Way, u64),
    /// After so many bytes more this way, connections end this way, as if the
    /// sender had closed them; the other way goes on.
    EndAfter(Way, u64),
}

/// Forwards TCP connections, with faults.
#[derive(Debug)]
pub struct Proxy {
    state: watch::Sender<State>,
    counts: Arc<Counts>,
}

#[derive(Clone, Debug)]
struct State {
    fault: Option<Fault>,
    /// What [`Fault::CutAfter`] and [`Fault::EndAfter`] still let through.
    left: Arc<AtomicU64>,
    /// Connections that are older than this are reset.
    cuts: u64,
}

#[derive(Debug, Default)]
struct Counts {
    connections: AtomicU64,
    cut: AtomicU64,
    ended: AtomicU64,
    swallowed: AtomicU64,
}

impl Proxy {
    /// Forwards from `listen` to `gateway`, for as long as the runtime runs that
    /// this is called in.
    ///
    /// # Errors
    /// The system's, if `listen` is not free.
    pub async fn start(listen: SocketAddr, gateway: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(listen).await?;
        let counts = Arc::new(Counts::default());
        let (state, view) = watch::channel(State {
            fault: None,
            left: Arc::default(),
            cuts: 0,
        });
        tokio::spawn(serve(listener, gateway, view, Arc::clone(&counts)));
        Ok(Self { state, counts })
    }

    /// From now on this is wrong, or nothing.
    pub fn set(&self, fault: Option<Fault>) {
        let left = match fault {
            Some(Fault::CutAfter(_, bytes) | Fault::EndAfter(_, bytes)) => bytes,
            _ => 0,
        };
        self.state.send_modify(|state| {
            state.fault = fault;
            state.left = Arc::new(AtomicU64::new(left));
        });
    }

    /// Resets all connections.
    pub fn cut(&self) {
        self.state.send_modify(|state| state.cuts += 1);
    }

    /// What it did, for people.
    #[must_use]
    pub fn counts(&self) -> String {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        format!(
            "{} connections, {} of them reset, {} ended one way, {} chunks swallowed",
            of(&self.counts.connections),
            of(&self.counts.cut),
            of(&self.counts.ended),
            of(&self.counts.swallowed),
        )
    }
}

async fn serve(
    mut listener: TcpListener,
    gateway: SocketAddr,
    mut state: watch::Receiver<State>,
    counts: Arc<Counts>,
) {
    let Ok(address) = listener.local_addr() else {
        return;
    };
    let refuses = |state: &State| state.fault == Some(Fault::Refuse);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => Some(accepted),
            _ = state.wait_for(refuses) => None,
        };
        match accepted {
            Some(Ok((device, _))) => {
                tokio::spawn(connection(
                    device,
                    gateway,
                    state.clone(),
                    Arc::clone(&counts),
                ));
                continue;
            }
            Some(Err(_)) => continue,
            None => {}
        }
        // Only without a listener does the kernel refuse.
        drop(listener);
        if state.wait_for(|state| !refuses(state)).await.is_err() {
            return;
        }
        listener = loop {
            match TcpListener::bind(address).await {
                Ok(listener) => break listener,
                Err(_) => sleep(Duration::from_millis(20)).await,
            }
        };
    }
}

async fn connection(
    mut device: TcpStream,
    gateway: SocketAddr,
    mut state: watch::Receiver<State>,
    counts: Arc<Counts>,
) {
    counts.connections.fetch_add(1, Ordering::Relaxed);
    let cuts = state.borrow().cuts;
    let Ok(mut gateway) = TcpStream::connect(gateway).await else {
        // Nobody is there: as good as a reset.
        let _ = device.set_zero_linger();
        return;
    };
    let _ = device.set_nodelay(true);
    let _ = gateway.set_nodelay(true);
    let (from_device, to_device) = device.split();
    let (from_gateway, to_gateway) = gateway.split();
    let requests = Pump {
        way: Way::ToGateway,
        state: state.clone(),
        counts: &counts,
    };
    let answers = Pump {
        way: Way::ToDevice,
        state: state.clone(),
        counts: &counts,
    };
    let both = async {
        tokio::try_join!(
            requests.run(from_device, to_gateway),
            answers.run(from_gateway, to_device)
        )
    };
    let reset = tokio::select! {
        ended = both => ended.is_err(),
        _ = state.wait_for(|state| state.cuts != cuts) => true,
    };
    if reset {
        counts.cut.fetch_add(1, Ordering::Relaxed);
        let _ = device.set_zero_linger();
        let _ = gateway.set_zero_linger();
    }
}

/// One way of a connection.
struct Pump<'a> {
    way: Way,
    state: watch::Receiver<State>,
    counts: &'a Counts,
}

impl Pump<'_> {
    /// An error: the connection is to be reset.
    async fn run(mut self, mut from: ReadHalf<'_>, mut to: WriteHalf<'_>) -> io::Result<()> {
        let reset = || io::Error::from(io::ErrorKind::ConnectionReset);
        let mut buffer = vec![0; 16 << 10];
        let (mut lost, mut silent) = (false, false);
        loop {
            let read = from.read(&mut buffer).await;
            silent |= self.state.borrow().fault == Some(Fault::Silence);
            let read = match (read, self.way) {
                (Ok(0) | Err(_), Way::ToDevice) if silent => pending().await,
                (Ok(0), Way::ToGateway) if silent => return Err(reset()),
                (read, _) => read?,
            };
            let (fault, left) = loop {
                let (fault, left) = {
                    let state = self.state.borrow_and_update();
                    (state.fault, Arc::clone(&state.left))
                };
                if fault != Some(Fault::Stall(self.way)) {
                    break (fault, left);
                }
                self.state.changed().await.map_err(|_| reset())?;
            };
            match fault {
                _ if silent => lost = true,
                Some(Fault::Swallow(way)) if way == self.way => lost = true,
                Some(Fault::Delay(time)) => sleep(time).await,
                Some(Fault::CutAfter(way, _) | Fault::EndAfter(way, _)) if way == self.way => {
                    let before = left.load(Ordering::Relaxed);
                    let through = before.min(read as u64);
                    left.store(before - through, Ordering::Relaxed);
                    if through < read as u64 {
                        to.write_all(&buffer[..through as usize]).await?;
                        if let Some(Fault::CutAfter(..)) = fault {
                            return Err(reset());
                        }
                        self.counts.ended.fetch_add(1, Ordering::Relaxed);
                        return to.shutdown().await;
                    }
                }
                _ => {}
            }
            if lost {
                self.counts.swallowed.fetch_add(1, Ordering::Relaxed);
            }
            match (read, lost) {
                (0, true) => return Ok(()),
                (0, false) => return to.shutdown().await,
                (_, true) => {}
                (_, false) => to.write_all(&buffer[..read]).await?,
            }
        }
    }
}
