//! What the kernel tells of its network: rtnetlink(7).

use std::collections::BTreeSet;
use std::io;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with};
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

/// Says each time that the network may be back: an address or a way out is new,
/// or an interface carries again. Ends with an error if the kernel tells nothing.
pub(crate) async fn watch(returned: watch::Sender<()>) -> io::Result<()> {
    let socket = subscribe()?;
    let mut network = Network::default();
    let mut datagram = vec![0; LARGEST];
    let mut pace = Pace::default();
    // When it is said what was heard.
    let mut due = None;
    loop {
        let received = tokio::select! {
            received = socket.recv(&mut datagram) => received,
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                due = None;
                tracing::debug!("the network has changed: it may be back");
                returned.send_replace(());
                continue;
            }
        };
        let is_back = match received {
            Ok(length) => network.is_back(datagram.get(..length).unwrap_or_default()),
            // So much has happened that some of it was not told.
            Err(error) if error.raw_os_error() == Some(Errno::NOBUFS.raw_os_error()) => true,
            Err(error) => return Err(error),
        };
        if is_back && due.is_none() {
            due = Some(pace.next(Instant::now()));
        }
    }
}

/// How soon news are passed on: at once, and less and less often while there are more
/// and more of them. Each costs a connection, with a signature.
#[derive(Debug)]
struct Pace {
    last: Option<Instant>,
    /// From the last one to the next.
    pause: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            last: None,
            pause: SHORTEST,
        }
    }
}

impl Pace {
    /// When to pass on what has come now, after all of before was.
    fn next(&mut self, now: Instant) -> Instant {
        let last = self
            .last
            .filter(|last| now < *last + QUIET.max(2 * self.pause));
        let due = match last {
            Some(last) => {
                let due = now.max(last + self.pause);
                self.pause = (2 * self.pause).min(LONGEST);
                due
            }
            None => {
                self.pause = SHORTEST;
                now
            }
        };
        self.last = Some(due);
        due
    }
}

/// tokio has no type for a netlink socket. One for datagrams receives them: that
/// is all that it is used for.
fn subscribe() -> io::Result<UdpSocket> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    // Protocol 0 is NETLINK_ROUTE.
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
    bind(&socket, &SocketAddrNetlink::new(0, GROUPS))?;
    UdpSocket::from_std(socket.into())
}

/// What is there, so that what is only told again is no news: a lease that is
/// renewed, a router that advertises itself.
#[derive(Debug, Default)]
struct Network {
    /// Addresses and ways out: the interface, and the bytes that tell them from others.
    known: BTreeSet<(Index, Vec<u8>)>,
    /// Interfaces that carry nothing.
    down: BTreeSet<Index>,
}

/// Of an interface, as the kernel has it; zeros for none.
type Index = [u8; 4];

impl Network {
    fn is_back(&mut self, datagram: &[u8]) -> bool {
        let mut is_back = false;
        for (kind, body) in Messages(datagram) {
            is_back |= self.take(kind, body).unwrap_or(false);
        }
        is_back
    }

    /// `None` is a message that is too short to be one.
    fn take(&mut self, kind: u16, body: &[u8]) -> Option<bool> {
        let is_new = match kind {
            // struct ifinfomsg: family 1, 1, type 2, index 4, flags 4, change 4
            NEW_LINK => {
                let index = *body.get(4..)?.first_chunk()?;
                let flags = number(body.get(8..)?)?;
                if flags & RUNNING != 0 {
                    return Some(self.down.remove(&index));
                }
                bounded(&mut self.down).insert(index);
                self.forget(index);
                return Some(false);
            }
            DELETED_LINK => {
                let index = *body.get(4..)?.first_chunk()?;
                self.down.remove(&index);
                self.forget(index);
                return Some(false);
            }
            NEW_ADDRESS | NEW_ROUTE => true,
            DELETED_ADDRESS | DELETED_ROUTE => false,
            _ => return Some(false),
        };
        let key = match kind {
            // struct ifaddrmsg: family 1, prefix 1, flags 1, scope 1, index 4
            NEW_ADDRESS | DELETED_ADDRESS => {
                let [family, _, _, scope, index @ ..] = *body.first_chunk::<8>()?;
                if scope >= SCOPE_LINK {
                    return Some(false);
                }
                let mut key = vec![b'a', family];
                key.extend(attributes(body.get(8..)?, &[IFA_ADDRESS, IFA_LOCAL]));
                (index, key)
            }
            // struct rtmsg: family 1, destination's length 1, source's 1, tos 1,
            // table 1, protocol 1, scope 1, type 1, flags 4
            _ => {
                let [family, length, _, _, table, _, _, kind, ..] = *body.first_chunk::<12>()?;
                if length != 0 || kind != UNICAST {
                    return Some(false);
                }
                let attributes_in = body.get(12..)?;
                let interface = attributes(attributes_in, &[RTA_OIF]);
                let index = interface.get(2..).and_then(<[u8]>::first_chunk);
                let mut key = vec![b'r', family, table];
                let which = [RTA_GATEWAY, RTA_PRIORITY, RTA_TABLE];
                key.extend(attributes(attributes_in, &which));
                (index.copied().unwrap_or_default(), key)
            }
        };
        if is_new {
            Some(bounded(&mut self.known).insert(key))
        } else {
            self.known.remove(&key);
            Some(false)
        }
    }

    /// Whatever comes back with this interface is news: the kernel drops the ways out
    /// of one that is set down without a word.
    fn forget(&mut self, index: Index) {
        self.known.retain(|(of, _)| *of != index);
    }
}

/// The set, empty if it was as large as nothing on a device is: then some news
/// are told twice.
fn bounded<T>(set: &mut BTreeSet<T>) -> &mut BTreeSet<T> {
    if set.len() >= MOST_KNOWN {
        set.clear();
    }
    set
}

/// The messages in a datagram, struct nlmsghdr before each: length 4, type 2,
/// flags 2, number 4, port 4.
struct Messages<'a>(&'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::try_from(number(self.0)?).ok()?;
        let kind = short(self.0.get(4..)?)?;
        let body = self.0.get(16..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, body))
    }
}

/// Those of these types, each with its type before it. struct rtattr: length 2,
/// type 2.
fn attributes(mut bytes: &[u8], wanted: &[u16]) -> Vec<u8> {
    let mut found = Vec::new();
    while let Some((length, kind)) = short(bytes).zip(bytes.get(2..).and_then(short)) {
        let length = usize::from(length);
        let Some(value) = bytes.get(4..length) else {
            break;
        };
        if wanted.contains(&kind) {
            found.extend(kind.to_be_bytes());
            found.extend(value);
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

#[allow(clippy::host_endian_bytes, reason = "the kernel of this very machine")]
fn number(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

#[allow(clippy::host_endian_bytes, reason = "the kernel of this very machine")]
fn short(bytes: &[u8]) -> Option<u16> {
    bytes.first_chunk().map(|bytes| u16::from_ne_bytes(*bytes))
}

// linux/rtnetlink.h, linux/if_addr.h, linux/if.h
/// RTMGRP_LINK, RTMGRP_IPV4_IFADDR and _ROUTE, RTMGRP_IPV6_IFADDR and _ROUTE.
const GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x100 | 0x400;
const NEW_LINK: u16 = 16;
const DELETED_LINK: u16 = 17;
const NEW_ADDRESS: u16 = 20;
const DELETED_ADDRESS: u16 = 21;
const NEW_ROUTE: u16 = 24;
const DELETED_ROUTE: u16 = 25;
/// IFF_RUNNING
const RUNNING: u32 = 0x40;
/// RT_SCOPE_LINK: from here on an address leads nowhere else.
const SCOPE_LINK: u8 = 253;
/// RTN_UNICAST
const UNICAST: u8 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_TABLE: u16 = 15;

/// A datagram; the kernel's are shorter.
const LARGEST: usize = 32 * 1024;
const MOST_KNOWN: usize = 4096;

/// Between one time that news are passed on and the next. A link that returns has
/// some: the interface, its address, a way out.
const SHORTEST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(30);
/// After so long without any, the next are passed on at once again.
const QUIET: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::host_endian_bytes)]

    use proptest::prelude::*;

    use super::*;

    fn message(kind: u16, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(16 + body.len()).unwrap();
        let mut message = length.to_ne_bytes().to_vec();
        message.extend(kind.to_ne_bytes());
        message.extend([0; 10]);
        message.extend(body);
        message.resize(message.len().next_multiple_of(4), 0);
        message
    }

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(4 + value.len()).unwrap();
        let mut attribute = length.to_ne_bytes().to_vec();
        attribute.extend(kind.to_ne_bytes());
        attribute.extend(value);
        attribute.resize(attribute.len().next_multiple_of(4), 0);
        attribute
    }

    /// An IPv4 address of interface 2, and for how long it is leased.
    fn address(kind: u16, scope: u8, last: u8, leased: u8) -> Vec<u8> {
        let mut body = vec![2, 24, 0x80, scope];
        body.extend(2_u32.to_ne_bytes());
        body.extend(attribute(IFA_ADDRESS, &[192, 0, 2, last]));
        body.extend(attribute(IFA_LOCAL, &[192, 0, 2, last]));
        body.extend(attribute(6, &[leased; 16]));
        message(kind, &body)
    }

    fn route(kind: u16, length: u8, gateway: u8) -> Vec<u8> {
        let mut body = vec![2, length, 0, 0, 254, 3, 0, UNICAST, 0, 0, 0, 0];
        body.extend(attribute(RTA_GATEWAY, &[192, 0, 2, gateway]));
        body.extend(attribute(RTA_OIF, &2_u32.to_ne_bytes()));
        message(kind, &body)
    }

    fn link(kind: u16, index: u32, flags: u32) -> Vec<u8> {
        let mut body = vec![0; 4];
        body.extend(index.to_ne_bytes());
        body.extend(flags.to_ne_bytes());
        body.extend([0; 4]);
        message(kind, &body)
    }

    #[test]
    fn an_address_is_news_once() {
        let mut network = Network::default();
        assert!(network.is_back(&address(NEW_ADDRESS, 0, 7, 60)));
        // the lease is renewed
        assert!(!network.is_back(&address(NEW_ADDRESS, 0, 7, 30)));
        assert!(network.is_back(&address(NEW_ADDRESS, 0, 8, 30)));
        assert!(!network.is_back(&address(DELETED_ADDRESS, 0, 7, 0)));
        assert!(network.is_back(&address(NEW_ADDRESS, 0, 7, 60)));
        // of this link alone, or of this machine
        assert!(!network.is_back(&address(NEW_ADDRESS, 253, 9, 60)));
        assert!(!network.is_back(&address(NEW_ADDRESS, 254, 9, 60)));
    }

    #[test]
    fn a_way_out_is_news_and_a_way_to_a_neighbour_is_none() {
        let mut network = Network::default();
        assert!(!network.is_back(&route(NEW_ROUTE, 24, 1)));
        assert!(network.is_back(&route(NEW_ROUTE, 0, 1)));
        assert!(!network.is_back(&route(NEW_ROUTE, 0, 1)));
        assert!(network.is_back(&route(NEW_ROUTE, 0, 2)));
        assert!(!network.is_back(&route(DELETED_ROUTE, 0, 1)));
        assert!(network.is_back(&route(NEW_ROUTE, 0, 1)));
        // of an interface that goes down, and of another one
        assert!(!network.is_back(&link(NEW_LINK, 3, 1)));
        assert!(!network.is_back(&route(NEW_ROUTE, 0, 1)));
        assert!(!network.is_back(&link(NEW_LINK, 2, 1)));
        assert!(network.is_back(&link(NEW_LINK, 2, RUNNING | 1)));
        assert!(network.is_back(&route(NEW_ROUTE, 0, 1)));
    }

    #[test]
    fn an_interface_that_carries_again_is_news() {
        let mut network = Network::default();
        // a scan for networks tells of a link that carries as it did
        assert!(!network.is_back(&link(NEW_LINK, 2, RUNNING | 1)));
        assert!(!network.is_back(&link(NEW_LINK, 2, 1)));
        assert!(!network.is_back(&link(NEW_LINK, 3, RUNNING | 1)));
        assert!(network.is_back(&link(NEW_LINK, 2, RUNNING | 1)));
        assert!(!network.is_back(&link(NEW_LINK, 2, RUNNING | 1)));
        assert!(!network.is_back(&link(NEW_LINK, 2, 1)));
        assert!(!network.is_back(&link(DELETED_LINK, 2, 0)));
        assert!(!network.is_back(&link(NEW_LINK, 2, RUNNING | 1)));
    }

    #[test]
    fn every_message_of_a_datagram_counts() {
        let known = address(NEW_ADDRESS, 0, 7, 60);
        let mut network = Network::default();
        network.is_back(&known);
        let other = address(NEW_ADDRESS, 0, 8, 60);
        assert!(network.is_back(&[known.clone(), other.clone()].concat()));
        assert!(!network.is_back(&[known, other].concat()));
    }

    #[test]
    fn a_link_that_returns_is_told_of_at_once_and_one_that_flaps_ever_less_often() {
        let start = Instant::now();
        let mut pace = Pace::default();
        let mut after = |ms| {
            let due = pace.next(start + Duration::from_millis(ms));
            (due - start).as_millis()
        };
        // its interface; two seconds later an address, and a way out with it
        assert_eq!([after(0), after(2000), after(2001)], [0, 2000, 2100]);
        assert_eq!([after(2150), after(2300)], [2300, 2700]);
        // all is quiet in between
        assert_eq!([after(5000), after(5000)], [5000, 5100]);
        // three times in a second, for an hour
        let mut said = BTreeSet::new();
        let mut due = 0;
        for ms in (10_000..3_610_000).step_by(333) {
            if u128::from(ms) > due {
                due = after(ms);
                said.insert(due);
            }
        }
        assert!(said.len() < 140, "{}", said.len());
        let last = u128::from(3_610_000_u32 - 31_000);
        assert!(said.last().is_some_and(|said| *said > last), "{said:?}");
    }

    proptest! {
        #[test]
        fn no_datagram_is_too_odd(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            Network::default().is_back(&bytes);
        }

        #[test]
        fn what_is_cut_short_is_no_harm(at in 0_usize..80, kind in 16_u16..26) {
            let mut whole = address(NEW_ADDRESS, 0, 7, 60);
            whole[4..6].copy_from_slice(&kind.to_ne_bytes());
            whole.truncate(at);
            Network::default().is_back(&whole);
        }
    }
}
