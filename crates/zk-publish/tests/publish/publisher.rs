//! From a real spool to a server that misbehaves as told.

use std::convert::Infallible;
use std::fs;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::slice;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use crate::server::{Act, PATIENCE, Pki, Seen, Server, TRACE_ID};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use rustls::{ALL_VERSIONS, ClientConfig};
use tempfile::TempDir;
use zk_publish::{Backoff, Options, Publisher, State, Status, Target, Timeouts};
use zk_spool::Spool;
use zk_spool::storage::{Cut, FaultStorage, Lock, Storage, StorageFile};

#[test]
fn records_are_delivered_in_order_packed_and_over_one_connection() {
    let world = World::new();
    world.append(1..=40);
    let server = world.server(|_, _| Act::Reply(200));
    let publisher = world.publish(&server.endpoint(), QUICK);
    let status = until(&publisher, |status| status.records == 40);

    let messages = server.rest();
    assert_eq!(records_in(&messages), (1..=40).collect::<Vec<_>>());
    assert!(messages.iter().all(|seen| seen.body.len() <= BATCH_BYTES));
    assert!(messages.len() < 40, "{} messages", messages.len());
    assert_eq!(status.state, State::Online);
    assert_eq!(status.messages, messages.len() as u64);
    assert_eq!(
        status.bytes,
        messages
            .iter()
            .map(|seen| seen.body.len() as u64)
            .sum::<u64>()
    );
    assert_eq!(
        (status.connections, status.retries, status.rejected),
        (1, 0, 0)
    );
    assert_eq!(status.last_trace_id.as_deref(), Some(TRACE_ID));
    assert!(status.last_delivery.is_some());
    assert_eq!(status.last_error, None);
    assert_eq!(publisher.stop(Duration::ZERO).state, State::Stopped);
    assert!(world.waiting().is_empty());
}

#[test]
fn what_is_appended_later_is_delivered_too() {
    let world = World::new();
    let server = world.server(|_, _| Act::Reply(200));
    let publisher = world.publish(&server.endpoint(), QUICK);
    assert_eq!(publisher.status().state, State::Starting);
    for number in 1..=3 {
        world.append(number..=number);
        assert_eq!(records_in(&[server.next()]), [number]);
    }
    let status = until(&publisher, |status| status.records == 3);
    assert_eq!(status.connections, 1);
}

#[test]
fn trouble_of_the_server_is_waited_out() {
    let world = World::new();
    world.append(1..=1);
    let acts = [
        Act::Reply(429),
        Act::ReplyWith(503, ("retry-after", "3600"), Vec::new()),
        Act::Reply(500),
        Act::Reply(404),
        Act::Close,
        Act::ReplyThenClose(503),
        Act::Reply(200),
    ];
    let count = acts.len();
    let server = world.server(move |number, _| acts[number].clone());
    let publisher = world.publish(&server.endpoint(), QUICK);
    let status = until(&publisher, |status| status.records == 1);

    let messages = server.rest();
    assert_eq!(records_in(&messages), vec![1; count]);
    // closing a kept-alive connection is no failure yet
    assert_eq!((status.retries, status.rejected), (count as u64 - 2, 0));
    assert_eq!((status.messages, status.last_error), (1, None));
}

#[test]
fn a_server_that_asks_for_time_gets_it() {
    let world = World::new();
    world.append(1..=1);
    let server = world.server(|_, _| Act::ReplyWith(429, ("retry-after", "3600"), Vec::new()));
    let publisher = world.publish(
        &server.endpoint(),
        Options {
            forbidden: AGES,
            ..QUICK
        },
    );
    server.next();
    server.is_left_alone();
    publisher.link_returned();
    server.next();
    until(&publisher, |status| status.retries == 2);
    let status = publisher.stop(PATIENCE);
    assert_eq!((status.retries, world.waiting()), (2, vec![1]));
}

#[test]
fn one_bad_record_is_put_aside_and_blocks_nothing() {
    let world = World::new();
    world.append(1..=12);
    let server = world.server(
        |_, seen| match records_in(slice::from_ref(seen)).contains(&5) {
            true => Act::Reply(400),
            false => Act::Reply(200),
        },
    );
    let publisher = world.publish(&server.endpoint(), QUICK);
    let status = until(&publisher, |status| status.records == 11);

    // alone as long as they were refused together, and no longer
    let messages: Vec<_> = server
        .rest()
        .iter()
        .map(|seen| records_in(slice::from_ref(seen)))
        .collect();
    let together = [vec![1, 2, 3, 4, 5, 6]];
    let alone = (1..=6).map(|number| vec![number]);
    let later = [vec![7, 8, 9, 10, 11], vec![12]];
    assert_eq!(
        messages,
        together
            .into_iter()
            .chain(alone)
            .chain(later)
            .collect::<Vec<_>>()
    );
    assert_eq!((status.rejected, status.retries), (1, 0));
    assert_eq!(status.state, State::Online);
    assert!(world.waiting().is_empty());
    // the spool keeps account of it
    let losses = world.spool.losses().unwrap();
    assert_eq!(losses.len(), 1);
    assert_eq!(
        (losses[0].first, losses[0].last, losses[0].records),
        (5, 5, 1)
    );
}

#[test]
fn a_record_too_large_alone_is_put_aside() {
    let world = World::new();
    world.append(1..=2);
    let server = world.server(|number, _| match number {
        0 | 1 => Act::Reply(413),
        _ => Act::Reply(200),
    });
    let publisher = world.publish(&server.endpoint(), QUICK);
    let status = until(&publisher, |status| status.records == 1);
    let messages = server.rest();
    assert_eq!(records_in(&messages), [1, 2, 1, 2]);
    assert_eq!(status.rejected, 1);
    assert!(world.waiting().is_empty());
}

#[test]
fn a_record_that_cannot_be_packed_is_put_aside_unsent() {
    let world = World::new();
    world.append(1..=1);
    world
        .spool
        .append_with(|_| Ok::<_, Infallible>(b"unpackable".to_vec()))
        .unwrap();
    world.append(3..=3);
    let server = world.server(|_, _| Act::Reply(200));
    let publisher = world.publish(&server.endpoint(), QUICK);
    let status = until(&publisher, |status| status.records == 2);
    assert_eq!(records_in(&server.rest()), [1, 3]);
    assert_eq!(status.rejected, 1);
    assert!(world.waiting().is_empty());
}

#[test]
fn a_packer_that_takes_nothing_does_not_go_round_for_ever() {
    for wrong in [0, 3] {
        let world = World::new();
        world.append(1..=2);
        let server = world.server(|_, _| Act::Reply(200));
        let target = Target::new(&server.endpoint(), TOPIC).unwrap();
        let spool = Arc::clone(&world.spool);
        let pack = move |_: &[&[u8]], _| Ok::<_, Infallible>((Vec::new(), wrong));
        let publisher = Publisher::spawn(spool, target, world.tls(), QUICK, pack).unwrap();
        let status = until(&publisher, |status| status.rejected == 2);
        assert!(status.last_error.unwrap().contains("were packed"));
        assert_eq!(server.rest().len(), 0);
    }
}

#[test]
fn forbidden_raises_an_alarm_and_keeps_everything() {
    let world = World::new();
    world.append(1..=3);
    let status = Arc::new(AtomicU16::new(403));
    let answer = Arc::clone(&status);
    let server = world.server(move |_, _| Act::Reply(answer.load(Ordering::SeqCst)));
    let publisher = world.publish(
        &server.endpoint(),
        Options {
            forbidden: AGES,
            ..QUICK
        },
    );
    let seen = until(&publisher, |status| status.state == State::Forbidden);
    assert!(seen.last_error.unwrap().contains("registered"));
    assert_eq!((seen.records, seen.rejected), (0, 0));
    assert_eq!(world.waiting(), [1, 2, 3]);

    server.next();
    server.is_left_alone();

    status.store(200, Ordering::SeqCst);
    publisher.link_returned();
    let seen = until(&publisher, |status| status.records == 3);
    assert_eq!((seen.state, seen.last_error), (State::Online, None));
}

#[test]
fn a_certificate_that_is_not_accepted_raises_an_alarm() {
    let world = World::new();
    world.append(1..=1);
    let tls = world.pki.server(&[&rustls::version::TLS12]);
    let server = Server::start(tls, |_, _| Act::Reply(200));
    let target = Target::new(&server.endpoint(), TOPIC).unwrap();
    let (spool, tls) = (Arc::clone(&world.spool), Arc::new(world.pki.nobody()));
    let publisher = Publisher::spawn(spool, target, tls, QUICK, pack).unwrap();
    let status = until(&publisher, |status| status.state == State::Forbidden);
    assert!(status.last_error.unwrap().contains("certificate"));
    publisher.stop(PATIENCE);
    assert_eq!(world.waiting(), [1]);
}

#[test]
fn another_certificate_is_tried_at_once() {
    let world = World::new();
    world.append(1..=1);
    let tls = world.pki.server(&[&rustls::version::TLS12]);
    let server = Server::start(tls, |_, _| Act::Reply(200));
    let target = Target::new(&server.endpoint(), TOPIC).unwrap();
    let (spool, tls) = (Arc::clone(&world.spool), Arc::new(world.pki.nobody()));
    let options = Options {
        forbidden: AGES,
        ..QUICK
    };
    let publisher = Publisher::spawn(spool, target, tls, options, pack).unwrap();
    until(&publisher, |status| status.state == State::Forbidden);
    publisher.set_tls(world.tls());
    let status = until(&publisher, |status| status.records == 1);
    assert_eq!((status.state, status.connections), (State::Online, 1));

    // where all is well, too: the next message goes over a connection of its own
    publisher.set_tls(world.tls());
    world.append(2..=2);
    let status = until(&publisher, |status| status.records == 2);
    assert_eq!(status.connections, 2);
}

/// What a watchdog goes by: a pause of hours is none of its business, a message is.
#[test]
fn it_is_busy_with_a_message_and_not_while_it_pauses() {
    let world = World::new();
    world.append(1..=1);
    let server = world.server(|number, _| match number {
        0 => Act::Reply(403),
        _ => Act::Hang,
    });
    let publisher = world.publish(
        &server.endpoint(),
        Options {
            forbidden: AGES,
            ..Options::default()
        },
    );
    until(&publisher, |status| status.state == State::Forbidden);
    while publisher.status().busy_since.is_some() {
        std::thread::yield_now();
    }
    server.next();
    publisher.link_returned();
    // it has the request, and never answers it
    server.next();
    assert!(publisher.status().busy_since.is_some());
    publisher.stop(Duration::ZERO);
    assert_eq!(publisher.status().busy_since, None);
}

#[test]
fn a_server_that_refuses_everything_is_not_fed_the_whole_spool() {
    let world = World::new();
    world.append(1..=30);
    let server = world.server(|_, _| Act::Reply(400));
    let publisher = world.publish(
        &server.endpoint(),
        Options {
            forbidden: AGES,
            ..QUICK
        },
    );
    let status = until(&publisher, |status| status.state == State::Refusing);
    assert_eq!((status.rejected, status.records), (10, 0));
    assert_eq!(world.waiting(), (11..=30).collect::<Vec<_>>());
    // one at a time from now on, so that it can't block for ever either
    publisher.link_returned();
    until(&publisher, |status| status.rejected == 11);
    // stopping would go on with the rest, were it not in a pause
    let status = publisher.stop(PATIENCE);
    assert_eq!(status.rejected, 11);
    assert_eq!(world.waiting(), (12..=30).collect::<Vec<_>>());
}

#[test]
fn many_bad_records_between_good_ones_are_no_alarm() {
    let world = World::new();
    world.append(1..=24);
    let server = world.server(|_, seen| {
        match records_in(slice::from_ref(seen))
            .iter()
            .any(|number| number % 2 == 0)
        {
            true => Act::Reply(400),
            false => Act::Reply(200),
        }
    });
    let publisher = world.publish(
        &server.endpoint(),
        Options {
            forbidden: AGES,
            ..QUICK
        },
    );
    let status = until(&publisher, |status| status.records + status.rejected == 24);
    assert_eq!(
        (status.records, status.rejected, status.state),
        (12, 12, State::Online)
    );
}

#[test]
fn a_delivery_whose_answer_was_lost_is_repeated() {
    let world = World::new();
    world.append(1..=2);
    let server = world.server(|number, _| match number {
        0 => Act::Close,
        _ => Act::Reply(200),
    });
    let publisher = world.publish(&server.endpoint(), QUICK);
    let status = until(&publisher, |status| status.records == 2);
    let messages = server.rest();
    assert_eq!(records_in(&messages), [1, 2, 1, 2]);
    assert_eq!(messages[0].body, messages[1].body);
    assert_eq!((status.retries, status.connections), (1, 2));
}

#[test]
fn what_had_no_answer_when_the_process_ended_is_sent_by_the_next() {
    let world = World::new();
    world.append(1..=2);
    let server = world.server(|_, _| Act::Hang);
    let publisher = world.publish(&server.endpoint(), QUICK);
    assert_eq!(records_in(&[server.next()]), [1, 2]);
    assert_eq!(publisher.stop(Duration::ZERO).records, 0);
    drop(publisher);
    let world = world.reopened();

    let server = world.server(|_, _| Act::Reply(200));
    let publisher = world.publish(&server.endpoint(), QUICK);
    until(&publisher, |status| status.records == 2);
    assert_eq!(records_in(&server.rest()), [1, 2]);
}

#[test]
fn a_slow_server_is_given_up_and_tried_again() {
    let world = World::new();
    world.append(1..=1);
    let server = world.server(|number, _| match number {
        0 | 1 => Act::Hang,
        _ => Act::Reply(200),
    });
    let timeouts = Timeouts {
        response: Duration::from_millis(300),
        ..QUICK.timeouts
    };
    let publisher = world.publish(&server.endpoint(), Options { timeouts, ..QUICK });
    let status = until(&publisher, |status| status.records == 1);
    assert!(status.retries >= 2 && status.connections >= 3, "{status:?}");
}

#[test]
fn publishing_goes_on_when_the_link_returns() {
    let world = World::new();
    world.append(1..=3);
    // takes connections and says nothing, as a dead network would
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("localhost:{}", listener.local_addr().unwrap().port());
    let timeouts = Timeouts {
        handshake: Duration::from_millis(50),
        ..QUICK.timeouts
    };
    let options = Options {
        timeouts,
        failing: AGES,
        ..QUICK
    };
    let publisher = world.publish(&endpoint, options);
    let status = until(&publisher, |status| status.state == State::Offline);
    assert!(status.last_error.unwrap().contains("handshake"));

    drop(publisher);
    let server = Server::start_on(listener, world.pki.server(ALL_VERSIONS), |_, _| {
        Act::Reply(200)
    });
    let publisher = world.publish(
        &endpoint,
        Options {
            failing: AGES,
            ..QUICK
        },
    );
    until(&publisher, |status| status.records == 3);
    assert_eq!(records_in(&server.rest()), [1, 2, 3]);
}

#[test]
fn a_port_that_opens_again_is_found_by_itself() {
    let world = World::new();
    world.append(1..=3);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    // of the pauses, only that for what cannot be reached lets the test end
    let options = Options {
        failing: AGES,
        forbidden: AGES,
        ..QUICK
    };
    let publisher = world.publish(&format!("localhost:{}", address.port()), options);
    until(&publisher, |status| status.retries >= 3);
    let listener = TcpListener::bind(address).unwrap();
    let server = Server::start_on(listener, world.pki.server(ALL_VERSIONS), |_, _| {
        Act::Reply(200)
    });
    until(&publisher, |status| status.records == 3);
    assert_eq!(records_in(&server.rest()), [1, 2, 3]);
}

#[test]
fn a_request_of_the_old_link_does_not_hold_up_the_new_one() {
    let world = World::new();
    world.append(1..=1);
    let server = world.server(|number, _| match number {
        0 => Act::Hang,
        _ => Act::Reply(200),
    });
    // the answer is waited for longer than the test has patience
    let publisher = world.publish(&server.endpoint(), QUICK);
    server.next();
    publisher.link_returned();
    let status = until(&publisher, |status| status.records == 1);
    assert_eq!((status.retries, status.connections), (1, 2));
}

#[test]
fn a_failure_of_the_old_link_is_not_held_against_the_new_one() {
    let world = World::new();
    world.append(1..=1);
    let (gate, opened) = mpsc::channel::<()>();
    let server = world.server(move |number, _| match number {
        0 => {
            opened.recv().unwrap();
            Act::Close
        }
        _ => Act::Reply(200),
    });
    let publisher = world.publish(
        &server.endpoint(),
        Options {
            failing: AGES,
            ..QUICK
        },
    );
    server.next();
    publisher.link_returned();
    gate.send(()).unwrap();
    let status = until(&publisher, |status| status.records == 1);
    assert_eq!((status.retries, status.connections), (1, 2));
}

#[test]
fn no_message_is_spent_on_a_connection_of_the_old_link() {
    let world = World::new();
    let server = world.server(|_, _| Act::Reply(200));
    let publisher = world.publish(&server.endpoint(), QUICK);
    for number in 1..=3 {
        world.append(number..=number);
        until(&publisher, |status| status.records == number);
        assert_eq!(server.next().connection as u64, number);
        publisher.link_returned();
    }
}

/// A captive portal, a proxy, a server whose certificate has expired or was made
/// for another name: nothing is sent there, nothing is lost, and the log says what
/// is wrong. The right server is taken at once, with whatever new certificate.
#[test]
fn nothing_goes_to_whatever_answers_in_the_servers_place() {
    let world = World::new();
    world.append(1..=3);
    let other = Pki::new();
    let reply = |_: usize, _: &Seen| Act::Reply(200);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let options = Options {
        failing: AGES,
        forbidden: AGES,
        ..QUICK
    };
    let publisher = world.publish(&format!("localhost:{}", address.port()), options);
    let mut listener = Some(listener);
    let places = [
        (
            other.server(ALL_VERSIONS),
            "of no authority that is trusted",
        ),
        (
            world.pki.server_named("portal.example", 2020..2100),
            "for another name",
        ),
        (
            world.pki.server_named("localhost", 2019..2020),
            "has expired",
        ),
        (
            world.pki.server_named("localhost", 2100..2101),
            "not valid yet",
        ),
    ];
    for (tls, why) in places {
        let listener = listener
            .take()
            .unwrap_or_else(|| TcpListener::bind(address).unwrap());
        let server = Server::start_on(listener, tls, reply);
        let status = until(&publisher, |status| {
            status.state == State::Untrusted
                && status
                    .last_error
                    .as_ref()
                    .is_some_and(|error| error.contains(why))
        });
        assert_eq!(status.records, 0);
        assert!(server.rest().is_empty());
    }
    // One that speaks no TLS at all.
    let listener = TcpListener::bind(address).unwrap();
    let portal = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let page = b"HTTP/1.1 302 Found\r\nLocation: http://portal.example/\r\n\r\n";
        io::Write::write_all(&mut stream, page).unwrap();
        stream
    });
    let status = until(&publisher, |status| {
        let told = status.last_error.as_deref().unwrap_or_default();
        told.contains("speaks no TLS")
    });
    assert_eq!(status.state, State::Untrusted);
    drop(portal.join().unwrap());
    let server = Server::start_on(
        TcpListener::bind(address).unwrap(),
        world.pki.server_named("localhost", 2020..2100),
        reply,
    );
    until(&publisher, |status| status.records == 3);
    assert_eq!(records_in(&server.rest()), [1, 2, 3]);
    assert!(world.waiting().is_empty());
}

/// The kernel of a network of its own, where links come and go.
#[test]
#[ignore = "needs iproute2: apt-get install iproute2"]
fn publishing_goes_on_when_the_kernel_tells_of_a_link() {
    let told = told_in_a_network_of_its_own("publisher::role_in_a_network_of_its_own");
    assert!(told.contains("came and went"), "{told}");
}

/// Two networks with a cable between them, which is pulled and put in again.
#[test]
#[ignore = "needs iproute2: apt-get install iproute2"]
fn publishing_goes_on_when_a_link_to_another_machine_returns() {
    let told = told_in_a_network_of_its_own("publisher::role_at_the_end_of_a_cable");
    assert!(told.contains("pulled and put in"), "{told}");
    print!("{told}");
}

/// What this program says in that role, with a network for itself.
fn told_in_a_network_of_its_own(role: &str) -> String {
    let output = in_a_network_of_its_own(role)
        .output()
        .expect("unshare is missing; install it with: apt-get install util-linux");
    let said = String::from_utf8_lossy(&output.stderr);
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{told}");
    assert!(told.contains("1 passed"), "{told}");
    told.into_owned()
}

fn in_a_network_of_its_own(role: &str) -> Command {
    let mut command = Command::new("unshare");
    // root may have a network of its own, and so may whoever is root in a
    // namespace of users
    if !rustix::process::geteuid().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    command
        .args(["--net", "--mount"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", role, "--nocapture"])
        .env("ZK_TEST_NETWORK", "its own");
    command
}

fn ip(arguments: &str) {
    run(Command::new("ip").args(arguments.split(' ')));
}

fn run(command: &mut Command) {
    let status = command.status();
    let status = status.expect("ip is missing; install it with: apt-get install iproute2");
    assert!(status.success(), "{command:?}");
}

/// Another machine: a process that has nothing but a network and a socket there.
struct Peer {
    process: Child,
    listener: TcpListener,
    /// It ends with this.
    _end: UnixStream,
}

impl Peer {
    fn start() -> Self {
        let (end, other) = UnixStream::pair().unwrap();
        let process = in_a_network_of_its_own("publisher::role_of_a_peer")
            .stdin(OwnedFd::from(other))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut sent = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        let byte = &mut [IoSliceMut::new(&mut byte)];
        recvmsg(&end, byte, &mut sent, RecvFlags::empty()).unwrap();
        let listener = sent.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut sockets) => sockets.next(),
            _ => None,
        });
        Self {
            process,
            listener: listener.unwrap().into(),
            _end: end,
        }
    }

    fn ip(&self, arguments: &str) {
        let target = format!("--target={}", self.process.id());
        let mut command = Command::new("nsenter");
        command.args([&target, "--net", "ip"]);
        run(command.args(arguments.split(' ')));
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

#[test]
fn role_of_a_peer() {
    if std::env::var_os("ZK_TEST_NETWORK").is_none() {
        return;
    }
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let sockets = [listener.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut sent = SendAncillaryBuffer::new(&mut space);
    assert!(sent.push(SendAncillaryMessage::ScmRights(&sockets)));
    let byte = [IoSlice::new(&[0])];
    sendmsg(io::stdin(), &byte, &mut sent, SendFlags::empty()).unwrap();
    // until the other end is closed
    io::copy(&mut io::stdin(), &mut io::sink()).unwrap();
}

#[test]
fn role_at_the_end_of_a_cable() {
    if std::env::var_os("ZK_TEST_NETWORK").is_none() {
        return;
    }
    let world = World::new();
    let peer = Peer::start();
    let process = peer.process.id();
    ip(&format!(
        "link add v0 type veth peer name v1 netns {process}"
    ));
    ip("addr add 192.0.2.1/24 dev v0");
    ip("link set v0 up");
    peer.ip("addr add 192.0.2.2/24 dev v1");
    peer.ip("link set v1 up");
    let revoked = Arc::new(AtomicBool::new(false));
    let server = Server::start_on(
        peer.listener.try_clone().unwrap(),
        world.pki.server_named("192.0.2.2", 2020..2100),
        {
            let revoked = Arc::clone(&revoked);
            move |_, _| {
                Act::Reply(if revoked.load(Ordering::Relaxed) {
                    403
                } else {
                    200
                })
            }
        },
    );
    let endpoint = format!("192.0.2.2:{}", server.address.port());
    // As it is shipped: a cable out for so short that nothing was noticed.
    let publisher = world.publish(&endpoint, Options::default());
    world.append(1..=3);
    until(&publisher, |status| status.records == 3);
    let returns = |how: &str, publisher: &Publisher, returns: &dyn Fn(), records| {
        let before = Instant::now();
        returns();
        until(publisher, |status| status.records == records);
        println!("{how}: published after {:?}", before.elapsed());
    };
    peer.ip("link set v1 down");
    world.append(4..=4);
    returns(
        "a request is under way",
        &publisher,
        &|| peer.ip("link set v1 up"),
        4,
    );
    // A link that swallows everything, of which the kernel says nothing.
    peer.ip("route add blackhole 192.0.2.1/32");
    let before = Instant::now();
    world.append(5..=5);
    until(&publisher, |status| status.state == State::Offline);
    println!(
        "it swallows everything: noticed after {:?}",
        before.elapsed()
    );
    returns(
        "what swallowed everything is gone",
        &publisher,
        &|| peer.ip("route del blackhole 192.0.2.1/32"),
        5,
    );
    drop(publisher);

    // From here on no pause comes to an end by itself.
    let options = Options {
        timeouts: Timeouts {
            // long enough for a second try at a connection
            connect: Duration::from_secs(2),
            response: Duration::from_millis(300),
            ..Timeouts::default()
        },
        unreachable: AGES,
        failing: AGES,
        forbidden: AGES,
        untrusted: AGES,
        watch_link: true,
        ..QUICK
    };
    let publisher = world.publish(&endpoint, options);
    world.append(6..=6);
    until(&publisher, |status| status.records == 1);
    peer.ip("link set v1 down");
    world.append(7..=7);
    until(&publisher, |status| status.state == State::Offline);
    returns("the cable", &publisher, &|| peer.ip("link set v1 up"), 2);
    ip("link set v0 down");
    world.append(8..=8);
    until(&publisher, |status| status.state == State::Offline);
    returns("the interface", &publisher, &|| ip("link set v0 up"), 3);

    // The kernel forgets the ways out of an interface that goes down, and says nothing.
    ip("route add default via 192.0.2.2");
    ip("link set v0 down");
    world.append(9..=9);
    until(&publisher, |status| status.state == State::Offline);
    peer.ip("addr del 192.0.2.2/24 dev v1");
    let before = publisher.status().retries;
    ip("link set v0 up");
    until(&publisher, |status| status.retries > before);
    peer.ip("addr add 192.0.2.2/24 dev v1");
    returns(
        "a way out that was there before",
        &publisher,
        &|| ip("route add default via 192.0.2.2"),
        4,
    );

    // What another interface does all the time costs a server that wants nothing
    // of this device few attempts, and the last of it is not forgotten.
    revoked.store(true, Ordering::Relaxed);
    world.append(10..=10);
    let before = until(&publisher, |status| status.state == State::Forbidden).retries;
    ip("link add other type veth peer name beside");
    let comes_and_goes = || {
        ip("addr add 198.51.100.1/24 dev other");
        ip("addr del 198.51.100.1/24 dev other");
    };
    (0..300).for_each(|_| comes_and_goes());
    let attempts = publisher.status().retries - before;
    println!("{attempts} attempts while a link came and went 300 times");
    assert!(attempts < 15);
    revoked.store(false, Ordering::Relaxed);
    comes_and_goes();
    until(&publisher, |status| status.records == 5);
    drop(publisher);

    // Nobody resolves the name any more: where it last led counts, also for a new
    // certificate of the device.
    drop(server);
    let _server = Server::start_on(
        peer.listener.try_clone().unwrap(),
        world.pki.server_named("gateway.example", 2020..2100),
        |_, _| Act::Reply(200),
    );
    let instead_of = |place: &str, text: &str| {
        let file = world.directory.path().join("instead");
        fs::write(&file, text).unwrap();
        run(Command::new("mount").arg("--bind").arg(&file).arg(place));
        fs::remove_file(file).unwrap();
    };
    instead_of("/etc/hosts", "192.0.2.2 gateway.example\n");
    let port = peer.listener.local_addr().unwrap().port();
    let publisher = world.publish(&format!("gateway.example:{port}"), QUICK);
    world.append(11..=11);
    until(&publisher, |status| status.records == 1);
    run(Command::new("umount").arg("/etc/hosts"));
    instead_of("/etc/resolv.conf", "nameserver 192.0.2.2\n");
    publisher.link_returned();
    world.append(12..=12);
    until(&publisher, |status| status.records == 2);
    publisher.set_tls(world.tls());
    world.append(13..=13);
    until(&publisher, |status| status.records == 3);
    drop(publisher);

    // Not even a thread for each that asks a server of names that does not answer.
    peer.ip("route add blackhole 192.0.2.1/32");
    let threads = || fs::read_dir("/proc/self/task").unwrap().count();
    let before = threads();
    let options = Options {
        timeouts: Timeouts {
            connect: Duration::from_millis(50),
            ..Timeouts::default()
        },
        ..QUICK
    };
    let publisher = world.publish("gateway.example:8443", options);
    world.append(14..=14);
    until(&publisher, |status| status.retries >= 40);
    let threads = threads().saturating_sub(before);
    println!("{threads} threads more after 40 names that were not resolved");
    assert!(threads < 12);
    println!("pulled and put in");
}

/// The first of the two tests above, once it is there.
#[test]
fn role_in_a_network_of_its_own() {
    if std::env::var_os("ZK_TEST_NETWORK").is_none() {
        return;
    }
    let world = World::new();
    world.append(1..=3);
    // There is no address to bind yet, not even this machine's own.
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let serve = |listener| {
        Server::start_on(listener, world.pki.server(ALL_VERSIONS), |_, _| {
            Act::Reply(200)
        })
    };
    let server = serve(listener);
    // No pause comes to an end by itself.
    let options = Options {
        unreachable: AGES,
        failing: AGES,
        forbidden: AGES,
        untrusted: AGES,
        watch_link: true,
        ..QUICK
    };
    let publisher = world.publish(&format!("localhost:{port}"), options);
    until(&publisher, |status| status.state == State::Offline);
    ip("link set lo up");
    ip("link add v0 type veth peer name v1");
    ip("link set v0 up");
    ip("link set v1 up");
    ip("addr add 192.0.2.1/24 dev v0");
    until(&publisher, |status| status.records == 3);
    assert_eq!(records_in(&server.rest()), [1, 2, 3]);

    // The cable is pulled and put in again.
    drop(server);
    world.append(4..=4);
    until(&publisher, |status| status.state == State::Offline);
    let server = serve(TcpListener::bind(("0.0.0.0", port)).unwrap());
    server.is_left_alone();
    ip("link set v1 down");
    ip("link set v1 up");
    until(&publisher, |status| status.records == 4);

    // A way out comes back.
    drop(server);
    world.append(5..=5);
    until(&publisher, |status| status.state == State::Offline);
    let server = serve(TcpListener::bind(("0.0.0.0", port)).unwrap());
    ip("route add default via 192.0.2.2");
    until(&publisher, |status| status.records == 5);
    drop(server);
    println!("links came and went");
}

#[test]
fn stopping_publishes_what_is_left() {
    let world = World::new();
    world.append(1..=50);
    let (gate, opened) = mpsc::channel::<()>();
    let server = world.server(move |number, _| {
        if number == 0 {
            opened.recv().unwrap();
        }
        Act::Reply(200)
    });
    let publisher = world.publish(&server.endpoint(), QUICK);
    std::thread::scope(|scope| {
        let stopping = scope.spawn(|| publisher.stop(Duration::MAX));
        gate.send(()).unwrap();
        let status = stopping.join().unwrap();
        assert_eq!((status.state, status.records), (State::Stopped, 50));
    });
    assert!(world.waiting().is_empty());
    // a second time, and dropping it, do no harm
    assert_eq!(publisher.stop(Duration::MAX).state, State::Stopped);
}

#[test]
fn stopping_does_not_wait_for_a_link_that_is_down() {
    let world = World::new();
    world.append(1..=5);
    let server = world.server(|_, _| Act::Reply(503));
    let publisher = world.publish(
        &server.endpoint(),
        Options {
            failing: AGES,
            ..QUICK
        },
    );
    until(&publisher, |status| status.state == State::Offline);
    assert_eq!(publisher.stop(Duration::MAX).state, State::Stopped);
    assert_eq!(world.waiting(), [1, 2, 3, 4, 5]);
}

#[test]
fn stopping_breaks_off_a_request_when_its_time_is_over() {
    let world = World::new();
    world.append(1..=1);
    let server = world.server(|_, _| Act::Hang);
    let publisher = world.publish(&server.endpoint(), QUICK);
    server.next();
    let status: Status = publisher.stop(Duration::from_millis(20));
    assert_eq!((status.state, status.records), (State::Stopped, 0));
    assert_eq!(world.waiting(), [1]);
}

#[test]
fn a_name_lookup_that_hangs_holds_up_no_end() {
    let world = World::new();
    world.append(1..=1);
    let server = world.server(|_, _| Act::Hang);
    let target = Target::new(&server.endpoint(), TOPIC).unwrap();
    let (release, hanging) = mpsc::channel::<()>();
    let mut hanging = Some(hanging);
    let pack_hanging = move |records: &[&[u8]], limit| {
        // on the runtime's pool of threads, where names are looked up, too
        if let Some(hanging) = hanging.take() {
            tokio::task::spawn_blocking(move || hanging.recv());
        }
        pack(records, limit)
    };
    let (spool, tls) = (Arc::clone(&world.spool), world.tls());
    let publisher = Publisher::spawn(spool, target, tls, QUICK, pack_hanging).unwrap();
    server.next();
    let (ended, end) = mpsc::channel();
    let stopping = std::thread::spawn(move || ended.send(publisher.stop(Duration::ZERO).state));
    let state = end.recv_timeout(PATIENCE);
    drop(release);
    stopping.join().unwrap().unwrap();
    assert_eq!(state.expect("it ends"), State::Stopped);
}

#[test]
fn a_defect_is_seen_while_it_is_still_running() {
    let world = World::new();
    world.append(1..=1);
    let server = world.server(|_, _| Act::Reply(200));
    let target = Target::new(&server.endpoint(), TOPIC).unwrap();
    let (spool, tls) = (Arc::clone(&world.spool), world.tls());
    let broken = |_: &[&[u8]], _| -> Result<_, Infallible> { panic!("as the test wants it") };
    let publisher = Publisher::spawn(spool, target, tls, QUICK, broken).unwrap();
    let status = until(&publisher, |status| status.state == State::Failed);
    assert!(status.last_error.unwrap().contains("panicked"));
    assert_eq!(publisher.stop(PATIENCE).state, State::Failed);
    assert_eq!(world.waiting(), [1]);
}

#[test]
fn a_full_disk_is_waited_out() {
    let storage = Crowded::default();
    let spool = Spool::open_on(Arc::new(storage.clone()), zk_spool::Options::default());
    let world = World {
        spool: Arc::new(spool.unwrap()),
        ..World::new()
    };
    world.append(1..=3);
    let server = world.server(|_, _| Act::Reply(200));
    storage.full.store(true, Ordering::SeqCst);
    let publisher = world.publish(
        &server.endpoint(),
        Options {
            failing: AGES,
            ..QUICK
        },
    );
    // delivered, but that can't be written down
    let status = until(&publisher, |status| status.state == State::Offline);
    assert!(status.last_error.unwrap().contains("the disk is full"));
    assert_eq!((status.records, status.retries), (0, 1));
    assert_eq!(records_in(&server.rest()), [1, 2, 3]);

    storage.full.store(false, Ordering::SeqCst);
    publisher.link_returned();
    let status = until(&publisher, |status| status.records == 3);
    assert_eq!(status.state, State::Online);
    assert_eq!(records_in(&server.rest()), [1, 2, 3]);
    assert!(world.waiting().is_empty());
}

#[test]
fn a_record_that_a_full_spool_dropped_meanwhile_is_let_go() {
    for status in [200, 400] {
        let directory = TempDir::new().unwrap();
        let options = zk_spool::Options {
            cap: 16 << 10,
            segment_size: Some(2 << 10),
            full: zk_spool::Full::DropOldest,
            ..zk_spool::Options::default()
        };
        let spool = Spool::open(directory.path().join("spool"), options).unwrap();
        let world = World {
            directory,
            pki: Pki::new(),
            spool: Arc::new(spool),
        };
        world.append(1..=1);
        let (gate, opened) = mpsc::channel::<()>();
        let server = world.server(move |number, _| match number {
            0 => {
                opened.recv().unwrap();
                Act::Reply(status)
            }
            _ => Act::Reply(200),
        });
        let publisher = world.publish(&server.endpoint(), QUICK);
        assert_eq!(records_in(&[server.next()]), [1]);
        // the answer to that is held back until the record is gone
        let mut last = 1;
        while world.waiting()[0] == 1 {
            last += 1;
            world.append(last..=last);
        }
        let kept = world.waiting();
        assert_eq!(kept.last(), Some(&last));
        gate.send(()).unwrap();
        let status = publisher.stop(PATIENCE);
        assert_eq!(status.state, State::Stopped, "{status:?}");
        assert_eq!(records_in(&server.rest()), kept);
        assert!(world.waiting().is_empty());
    }
}

#[test]
fn a_spool_that_fails_ends_it_and_nothing_is_acknowledged() {
    let storage = FaultStorage::new();
    let open = |storage: FaultStorage| {
        let storage: Arc<dyn Storage> = Arc::new(storage);
        Arc::new(Spool::open_on(storage, zk_spool::Options::default()).unwrap())
    };
    let pki = Pki::new();
    let spool = open(storage.clone());
    spool
        .append_with(|_| Ok::<_, Infallible>(b"record 1".to_vec()))
        .unwrap();
    let server = Server::start(pki.server(ALL_VERSIONS), |_, _| Act::Reply(200));
    let target = Target::new(&server.endpoint(), TOPIC).unwrap();
    // the next change is the acknowledgement
    storage.fail_at(storage.operations() + 1);
    let tls = Arc::new(pki.device("pi-01"));
    let publisher = Publisher::spawn(Arc::clone(&spool), target, tls, QUICK, pack).unwrap();
    let status = until(&publisher, |status| status.state == State::Failed);
    assert!(status.last_error.is_some());
    assert_eq!(status.records, 0);
    // and stays so
    assert_eq!(publisher.stop(PATIENCE).state, State::Failed);
    drop(publisher);
    drop(spool);
    let spool = open(storage.after_cut(Cut::All));
    assert_eq!(spool.peek(10, 1000).unwrap().len(), 1);
}

#[test]
fn waiting_tells_when_it_was_in_vain() {
    let world = World::new();
    let server = world.server(|_, _| Act::Reply(200));
    let publisher = world.publish(&server.endpoint(), QUICK);
    assert_eq!(
        publisher.wait_for(Duration::ZERO, |status| status.records == 1),
        None
    );
}

const TOPIC: &str = "Zymkey/pi-01";

const BATCH_BYTES: usize = 100;

const NO_PAUSE: Backoff = Backoff {
    first: Duration::ZERO,
    most: Duration::ZERO,
};

/// A pause that a test would not live to see the end of.
const AGES: Backoff = Backoff {
    first: Duration::from_secs(86_400),
    most: Duration::from_secs(86_400),
};

const QUICK: Options = Options {
    batch_bytes: BATCH_BYTES,
    timeouts: Timeouts {
        connect: Duration::from_secs(3600),
        handshake: Duration::from_secs(3600),
        response: Duration::from_secs(3600),
    },
    unreachable: NO_PAUSE,
    failing: NO_PAUSE,
    forbidden: NO_PAUSE,
    untrusted: NO_PAUSE,
    // what happens to this machine's network is no part of a test
    watch_link: false,
};

struct World {
    directory: TempDir,
    pki: Pki,
    spool: Arc<Spool>,
}

impl World {
    fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let spool = Arc::new(open(&directory));
        Self {
            directory,
            pki: Pki::new(),
            spool,
        }
    }

    /// As after a restart.
    fn reopened(self) -> Self {
        let Self {
            directory,
            pki,
            spool,
        } = self;
        Arc::into_inner(spool)
            .expect("the publisher still has the spool")
            .close()
            .unwrap();
        let spool = Arc::new(open(&directory));
        Self {
            directory,
            pki,
            spool,
        }
    }

    fn server(&self, act: impl FnMut(usize, &Seen) -> Act + Send + 'static) -> Server {
        Server::start(self.pki.server(ALL_VERSIONS), act)
    }

    fn tls(&self) -> Arc<ClientConfig> {
        Arc::new(self.pki.device("pi-01"))
    }

    fn publish(&self, endpoint: &str, options: Options) -> Publisher {
        let target = Target::new(endpoint, TOPIC).unwrap();
        Publisher::spawn(Arc::clone(&self.spool), target, self.tls(), options, pack).unwrap()
    }

    fn append(&self, numbers: impl IntoIterator<Item = u64>) {
        for number in numbers {
            let record = format!("record {number}").into_bytes();
            let sequence = self
                .spool
                .append_with(|_| Ok::<_, Infallible>(record))
                .unwrap();
            assert_eq!(sequence, number);
        }
    }

    /// Sequence numbers of what is not acknowledged.
    fn waiting(&self) -> Vec<u64> {
        self.spool
            .peek(1000, 1 << 20)
            .unwrap()
            .iter()
            .map(zk_spool::Record::sequence)
            .collect()
    }
}

/// Files in memory on a disk without room even to overwrite, as file systems
/// that copy on write have it.
#[derive(Clone, Debug, Default)]
struct Crowded {
    storage: FaultStorage,
    full: Arc<AtomicBool>,
}

impl Crowded {
    fn file(&self, file: Arc<dyn StorageFile>) -> Arc<dyn StorageFile> {
        let full = Arc::clone(&self.full);
        Arc::new(CrowdedFile { file, full })
    }
}

impl Storage for Crowded {
    fn name(&self) -> String {
        self.storage.name()
    }

    fn lock(&self, file: &str) -> io::Result<Option<Lock>> {
        self.storage.lock(file)
    }

    fn list(&self, subdirectory: &str) -> io::Result<Vec<(String, u64)>> {
        self.storage.list(subdirectory)
    }

    fn open(&self, file: &str) -> io::Result<Arc<dyn StorageFile>> {
        Ok(self.file(self.storage.open(file)?))
    }

    fn create(&self, file: &str) -> io::Result<Arc<dyn StorageFile>> {
        Ok(self.file(self.storage.create(file)?))
    }

    fn create_dir(&self, subdirectory: &str) -> io::Result<()> {
        self.storage.create_dir(subdirectory)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.storage.rename(from, to)
    }

    fn link(&self, from: &str, to: &str) -> io::Result<()> {
        self.storage.link(from, to)
    }

    fn remove(&self, file: &str) -> io::Result<()> {
        self.storage.remove(file)
    }

    fn sync_dir(&self, subdirectory: &str) -> io::Result<()> {
        self.storage.sync_dir(subdirectory)
    }
}

#[derive(Debug)]
struct CrowdedFile {
    file: Arc<dyn StorageFile>,
    full: Arc<AtomicBool>,
}

impl StorageFile for CrowdedFile {
    fn size(&self) -> io::Result<u64> {
        self.file.size()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_at(buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        if self.full.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.file.write_at(bytes, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

/// Waits until the publisher's status is as wanted.
fn until(publisher: &Publisher, wanted: impl FnMut(&Status) -> bool) -> Status {
    let seen = publisher.wait_for(PATIENCE, wanted);
    seen.unwrap_or_else(|| panic!("it stays {:?}", publisher.status()))
}

fn open(directory: &TempDir) -> Spool {
    Spool::open(directory.path().join("spool"), zk_spool::Options::default()).unwrap()
}

/// Records joined by newlines.
fn pack(records: &[&[u8]], limit: usize) -> Result<(Vec<u8>, usize), io::Error> {
    if !records[0].starts_with(b"record ") {
        return Err(io::Error::other("not a record"));
    }
    let mut message = records[0].to_vec();
    let mut taken = 1;
    for record in &records[1..] {
        if message.len() + 1 + record.len() > limit || !record.starts_with(b"record ") {
            break;
        }
        message.push(b'\n');
        message.extend_from_slice(record);
        taken += 1;
    }
    Ok((message, taken))
}

/// The numbers of the records in these messages, in order.
fn records_in(messages: &[Seen]) -> Vec<u64> {
    let lines = messages
        .iter()
        .flat_map(|seen| seen.body.split(|byte| *byte == b'\n'));
    lines
        .map(|line| {
            std::str::from_utf8(line)
                .unwrap()
                .strip_prefix("record ")
                .unwrap()
        })
        .map(|number| number.parse().unwrap())
        .collect()
}
