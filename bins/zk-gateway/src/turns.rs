//! Who may begin a handshake, when more want to than may.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{mpsc, oneshot};

/// Turns at a handshake, so many at once, for connections `T`.
///
/// Whoever connects before he has proven who he is costs nothing, so there may
/// be many of him. When all turns are taken the next goes to the address of
/// which the fewest are under way, and only among equals to who waited longest.
/// An address of which fewer are under way does not even wait: the turn of the
/// most crowded one that began first is taken away for it. So who connects a
/// thousand times stands in his own way.
#[derive(Debug)]
pub(crate) struct Turns<T> {
    state: Mutex<State<T>>,
    given: mpsc::UnboundedSender<(T, Turn<T>)>,
}

/// Gives the connections whose turn it is.
pub(crate) type Given<T> = mpsc::UnboundedReceiver<(T, Turn<T>)>;

#[derive(Debug)]
struct State<T> {
    free: usize,
    waiting: usize,
    /// So many may wait.
    room: usize,
    /// The number of the last who waits or whose turn it is.
    number: u64,
    from: HashMap<IpAddr, From<T>>,
}

/// What comes from one address.
#[derive(Debug)]
struct From<T> {
    /// In the order in which they began. Dropping one takes the turn away.
    under_way: VecDeque<(u64, oneshot::Sender<()>)>,
    waiting: VecDeque<(u64, T)>,
}

/// A handshake may be under way until this is dropped, or taken away.
#[derive(Debug)]
pub(crate) struct Turn<T> {
    turns: Arc<Turns<T>>,
    address: IpAddr,
    number: u64,
    taken: oneshot::Receiver<()>,
}

impl<T> Turns<T> {
    pub(crate) fn new(count: usize) -> (Arc<Self>, Given<T>) {
        let (given, receiver) = mpsc::unbounded_channel();
        let state = Mutex::new(State {
            free: count,
            waiting: 0,
            room: count * WAITING,
            number: 0,
            from: HashMap::new(),
        });
        (Arc::new(Self { state, given }), receiver)
    }

    /// Asks for a turn, which comes with its time. If too many wait for one it
    /// gives back, to be sent away, the last of the address with the most, which
    /// may be this.
    pub(crate) fn ask(self: &Arc<Self>, address: IpAddr, connection: T) -> Option<T> {
        let address = network(address);
        let mut state = self.state();
        if state.free > 0 {
            state.free -= 1;
        } else if !state.take_from_a_crowd(address) {
            return state.wait(address, connection);
        }
        self.give(state, address, connection);
        None
    }

    /// Sends all away who wait.
    pub(crate) fn close(&self) {
        let mut state = self.state();
        state.waiting = 0;
        for from in state.from.values_mut() {
            from.waiting.clear();
        }
    }

    /// Once nobody takes turns any more, those that are given end with this.
    fn give(self: &Arc<Self>, mut state: MutexGuard<'_, State<T>>, address: IpAddr, to: T) {
        let number = state.count();
        let (keep, taken) = oneshot::channel();
        state.from(address).under_way.push_back((number, keep));
        // which may drop the turn, and that takes the lock
        drop(state);
        let turn = Turn {
            turns: Arc::clone(self),
            address,
            number,
            taken,
        };
        drop(self.given.send((to, turn)));
    }

    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> State<T> {
    fn wait(&mut self, address: IpAddr, connection: T) -> Option<T> {
        let mut sent_away = None;
        if self.waiting >= self.room {
            let own = self.from(address).waiting.len();
            let crowd = self.from.iter_mut();
            let crowd = crowd.max_by_key(|(_, from)| from.waiting.len());
            let last = crowd
                .filter(|(_, crowd)| crowd.waiting.len() > own)
                .and_then(|(crowd, from)| Some((*crowd, from.waiting.pop_back()?.1)));
            let Some((crowd, last)) = last else {
                self.forget_if_done(address);
                return Some(connection);
            };
            self.forget_if_done(crowd);
            self.waiting -= 1;
            sent_away = Some(last);
        }
        self.waiting += 1;
        let number = self.count();
        self.from(address).waiting.push_back((number, connection));
        sent_away
    }

    /// Takes a turn from the address with the most under way, if this one still
    /// has fewer when it gets it.
    fn take_from_a_crowd(&mut self, address: IpAddr) -> bool {
        let own = self.from.get(&address);
        let own = own.map_or(0, |from| from.under_way.len());
        let all = self.from.values_mut();
        let crowd = all.max_by_key(|from| from.under_way.len());
        let crowd = crowd.filter(|crowd| crowd.under_way.len() > own + 1);
        crowd.is_some_and(|crowd| crowd.under_way.pop_front().is_some())
    }

    /// Whose turn is next.
    fn next(&mut self) -> Option<(IpAddr, T)> {
        let first = |from: &From<T>| Some((from.under_way.len(), from.waiting.front()?.0));
        let next = self
            .from
            .iter()
            .filter_map(|(address, from)| Some((first(from)?, *address)))
            .min()?;
        let address = next.1;
        let (_, connection) = self.from(address).waiting.pop_front()?;
        self.waiting -= 1;
        Some((address, connection))
    }

    fn from(&mut self, address: IpAddr) -> &mut From<T> {
        self.from.entry(address).or_insert_with(|| From {
            under_way: VecDeque::new(),
            waiting: VecDeque::new(),
        })
    }

    fn forget_if_done(&mut self, address: IpAddr) {
        let done = |from: &From<T>| from.under_way.is_empty() && from.waiting.is_empty();
        if self.from.get(&address).is_some_and(done) {
            self.from.remove(&address);
        }
    }

    fn count(&mut self) -> u64 {
        self.number += 1;
        self.number
    }
}

impl<T> Turn<T> {
    /// Returns when it is taken away for the sake of another address.
    pub(crate) async fn taken(&mut self) {
        let _ = (&mut self.taken).await;
    }
}

impl<T> Drop for Turn<T> {
    fn drop(&mut self) {
        let mut state = self.turns.state();
        let from = state.from(self.address);
        let own = |(number, _): &(u64, _)| *number == self.number;
        let place = from.under_way.iter().position(own);
        let ended = place.and_then(|place| from.under_way.remove(place));
        state.forget_if_done(self.address);
        if ended.is_none() {
            // it was taken away, and is another's now
            return;
        }
        match state.next() {
            None => state.free += 1,
            Some((address, next)) => self.turns.give(state, address, next),
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn who_was_sent_away_leaves_nothing_behind() {
        let (turns, mut given) = Turns::new(1);
        let address = |n: u32| IpAddr::V6(Ipv6Addr::from_bits(u128::from(n) << 64));
        // Each from a network of his own: none is a crowd, and all but a few
        // are sent away again.
        let sent_away = (0..1000).filter_map(|n| turns.ask(address(n), n)).count();
        assert_eq!(sent_away, 1000 - 1 - WAITING);
        assert_eq!(turns.state().from.len(), 1 + WAITING);

        for _ in 0..=WAITING {
            drop(given.try_recv().unwrap());
        }
        assert!(given.try_recv().is_err());
        let state = turns.state();
        assert_eq!((state.free, state.waiting, state.from.len()), (1, 0, 0));
    }
}
