//! Who may begin a handshake, when more want to than may.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// Turns at a handshake, so many at once.
///
/// Whoever connects before he has proven who he is costs nothing, so there may
/// be many of him. When all turns are taken the next goes to the address of
/// which the fewest are under way, and only among equals to who waited longest:
/// who connects a thousand times waits for himself.
#[derive(Debug)]
pub(crate) struct Turns(Mutex<State>);

#[derive(Debug)]
struct State {
    free: usize,
    waiting: usize,
    /// So many may wait.
    room: usize,
    /// The number of the next who waits.
    number: u64,
    from: HashMap<IpAddr, From>,
}

/// What comes from one address.
#[derive(Debug, Default)]
struct From {
    under_way: usize,
    waiting: VecDeque<(u64, oneshot::Sender<Turn>)>,
}

/// A handshake may be under way until this is dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    turns: Arc<Turns>,
    address: IpAddr,
}

impl Turns {
    pub(crate) fn new(count: usize) -> Arc<Self> {
        Arc::new(Self(Mutex::new(State {
            free: count,
            waiting: 0,
            room: count * WAITING,
            number: 0,
            from: HashMap::new(),
        })))
    }

    /// Asks for a turn. It comes with its time, or the sender is dropped: then
    /// too many wait, and none of another address for whose sake it would not be
    /// this one.
    pub(crate) fn ask(self: &Arc<Self>, address: IpAddr) -> oneshot::Receiver<Turn> {
        let (sender, receiver) = oneshot::channel();
        let address = network(address);
        let mut state = self.state();
        if state.free > 0 {
            state.free -= 1;
            state.from.entry(address).or_default().under_way += 1;
            drop(state);
            self.give(address, sender);
        } else if state.has_room_for(address) {
            let number = state.number;
            state.number += 1;
            state.waiting += 1;
            let from = state.from.entry(address).or_default();
            from.waiting.push_back((number, sender));
        }
        receiver
    }

    /// Without the lock: if nobody waits for it any more, the turn ends at once.
    fn give(self: &Arc<Self>, address: IpAddr, to: oneshot::Sender<Turn>) {
        let turns = Arc::clone(self);
        drop(to.send(Turn { turns, address }));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Whether one more of this address may wait, after one of the most crowded
    /// address was sent away for it if need be.
    fn has_room_for(&mut self, address: IpAddr) -> bool {
        if self.waiting < self.room {
            return true;
        }
        let own = self.from.get(&address).map_or(0, |from| from.waiting.len());
        let crowd = self.from.values_mut().max_by_key(|from| from.waiting.len());
        let Some(crowd) = crowd.filter(|crowd| crowd.waiting.len() > own) else {
            return false;
        };
        crowd.waiting.pop_back();
        self.waiting -= 1;
        true
    }

    /// Whose turn is next.
    fn next(&mut self) -> Option<(IpAddr, oneshot::Sender<Turn>)> {
        loop {
            let first = |from: &From| Some((from.under_way, from.waiting.front()?.0));
            let next = self
                .from
                .iter()
                .filter_map(|(address, from)| Some((first(from)?, *address)))
                .min()?;
            let address = next.1;
            let from = self.from.get_mut(&address)?;
            let (_, sender) = from.waiting.pop_front()?;
            self.waiting -= 1;
            if !sender.is_closed() {
                from.under_way += 1;
                return Some((address, sender));
            }
            self.forget_if_done(address);
        }
    }

    fn forget_if_done(&mut self, address: IpAddr) {
        let done = |from: &From| from.under_way == 0 && from.waiting.is_empty();
        if self.from.get(&address).is_some_and(done) {
            self.from.remove(&address);
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut state = self.turns.state();
        if let Some(from) = state.from.get_mut(&self.address) {
            from.under_way -= 1;
        }
        state.forget_if_done(self.address);
        match state.next() {
            None => state.free += 1,
            Some((address, sender)) => {
                drop(state);
                self.turns.give(address, sender);
            }
        }
    }
}

/// Whoever has an address of IPv6 has 2^64 of them.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        v4 => v4,
    }
}

/// So many may wait for each that is under way.
pub(crate) const WAITING: usize = 8;
