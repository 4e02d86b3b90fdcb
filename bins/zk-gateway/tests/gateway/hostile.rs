//! What a hostile client may do, to a gateway that is a process of its own:
//! honest devices go on being served, and its memory stays where it is.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;

use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};
use rustls::ClientConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use crate::service::{Service, gateway, told};
use crate::world::{Conversation, Device, PATIENCE, World, talk};

/// What the gateway may ever have in memory, its code included.
const MAX_MEMORY_KIB: u64 = 64 * 1024;

/// Limits under which what never ends is over soon.
const SOON: &str = "[limits]\nidle = \"3s\"\nbody = \"3s\"\nconnections-per-device = 300\n";

/// A gateway, honest devices that publish, and one that is not.
struct Siege {
    world: World,
    service: Service,
    honest: Vec<Honest>,
    hostile: Device,
}

struct Honest {
    device: Device,
    tls: Arc<ClientConfig>,
    address: Ipv4Addr,
    published: u64,
}

impl Siege {
    async fn new(limits: &str) -> Self {
        let world = World::new().await;
        // Each thread has memory of its own: as many as on the smallest machine
        // that is still of use.
        let mut command = gateway();
        command.env("TOKIO_WORKER_THREADS", "2");
        let service = Service::start(&world, limits, &mut command);
        let hostile = world.device("pi-66").await;
        let mut honest = Vec::new();
        for n in 1..=4 {
            let device = world.device(&format!("pi-0{n}")).await;
            honest.push(Honest {
                tls: Arc::new(device.tls.clone()),
                device,
                address: Ipv4Addr::new(127, 0, 1, n),
                published: 0,
            });
        }
        let mut siege = Self {
            world,
            service,
            honest,
            hostile,
        };
        siege.serve().await;
        siege
    }

    /// All honest devices at once connect anew and publish two messages.
    async fn serve(&mut self) {
        let mut rounds = JoinSet::new();
        for mut honest in self.honest.drain(..) {
            let to = self.service.address;
            rounds.spawn(async move {
                honest.publish(to).await;
                honest
            });
        }
        while let Some(honest) = rounds.join_next().await {
            self.honest.push(honest.unwrap());
        }
    }

    async fn connect(&self) -> Conversation {
        let stream = TcpStream::connect(self.service.address).await.unwrap();
        talk(stream, Arc::new(self.hostile.tls.clone()))
            .await
            .unwrap()
    }

    /// Serves the honest until all of `attacks` are over, and gives what came of
    /// them.
    async fn serve_during<T: 'static>(&mut self, attacks: Vec<JoinHandle<T>>) -> Vec<T> {
        self.serve().await;
        while !attacks.iter().all(JoinHandle::is_finished) {
            self.serve().await;
        }
        let mut results = Vec::new();
        for attack in attacks {
            results.push(attack.await.unwrap());
        }
        results
    }

    /// Serves the honest once more, and takes stock.
    async fn end(mut self, what: &str) {
        self.serve().await;
        let (mut published, mut stored) = (0, 0);
        for honest in &self.honest {
            published += honest.published;
            stored += self.world.stored(&honest.device).await.len() as u64;
        }
        let memory = self.most_memory_kib();
        println!(
            "{what}: {stored} of {published} messages of honest devices stored; \
             at most {memory} KiB of memory"
        );
        assert_eq!(stored, published, "{what}");
        assert!(memory <= MAX_MEMORY_KIB, "{what}: {memory} KiB");
        self.service.signal(Signal::TERM);
        let output = self.service.end();
        assert_eq!(output.status.code(), Some(0), "{}", told(&output));
        assert!(!told(&output).contains("panicked"), "{}", told(&output));
    }

    fn most_memory_kib(&self) -> u64 {
        let status = format!("/proc/{}/status", self.service.pid().as_raw_nonzero());
        let status = fs::read_to_string(status).unwrap();
        let most = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let most = most.unwrap().trim().strip_suffix(" kB");
        most.unwrap().parse().unwrap()
    }

    fn open_files(&self) -> usize {
        let open = format!("/proc/{}/fd", self.service.pid().as_raw_nonzero());
        fs::read_dir(open).unwrap().count()
    }
}

impl Honest {
    /// Publishes two messages over a connection of its own.
    async fn publish(&mut self, to: SocketAddr) {
        let served = async {
            let mut fresh = self.connect(to).await;
            self.publish_over(&mut fresh).await;
            self.publish_over(&mut fresh).await;
        };
        timeout(PATIENCE, served)
            .await
            .expect("an honest device was not served");
    }

    async fn connect(&self, to: SocketAddr) -> Conversation {
        let stream = connect_from(self.address, to).await;
        talk(stream, Arc::clone(&self.tls)).await.unwrap()
    }

    async fn publish_over(&mut self, conversation: &mut Conversation) {
        let message = self.device.message([self.published + 1]);
        let answer = conversation.ask(&self.device.post(&message)).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        self.published += 1;
    }
}

async fn connect_from(address: Ipv4Addr, to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((address, 0).into()).unwrap();
    socket.connect(to).await.unwrap()
}

/// Where the hostile device connects from, who does not want to stand in the
/// crowd of strangers itself.
const PROVEN: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 3);

const CHUNKED: &str = "POST /topics/a HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n";

fn sized(length: &str) -> String {
    format!("POST /topics/a HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n")
}

/// A byte for each round that the honest are served, until the time for a header
/// is over, or for a body.
#[tokio::test(flavor = "multi_thread")]
async fn who_sends_a_byte_at_a_time() {
    let mut siege = Siege::new(SOON).await;
    let (tick, ticks) = watch::channel(());
    let slow = |mut conversation: Conversation, head: &str, rest: &'static str| {
        let (head, mut ticks) = (head.to_owned(), ticks.clone());
        tokio::spawn(async move {
            conversation.send(head.as_bytes()).await;
            let mut rest = rest.bytes().cycle();
            loop {
                tokio::select! {
                    answer = conversation.try_answer() => break answer.map(|answer| answer.status),
                    ticked = ticks.changed() => {
                        ticked.unwrap();
                        let byte = [rest.next().unwrap()];
                        // it fails when the gateway has closed, which is read next
                        let _ = conversation.stream.write_all(&byte).await;
                        let _ = conversation.stream.flush().await;
                    }
                }
            }
        })
    };
    let header = "POST /topics/a HTTP/1.1\r\nhost: x\r\nx: 1234";
    let (mut headers, mut bodies) = (Vec::new(), Vec::new());
    for _ in 0..64 {
        headers.push(slow(siege.connect().await, "", header));
        bodies.push(slow(siege.connect().await, &sized("1000"), "{"));
        bodies.push(slow(siege.connect().await, CHUNKED, "1\r\n{\r\n"));
    }
    let all = || headers.iter().chain(&bodies);
    while !all().all(JoinHandle::is_finished) {
        siege.serve().await;
        tick.send_replace(());
    }
    for header in headers {
        assert_eq!(header.await.unwrap(), None);
    }
    for body in bodies {
        assert_eq!(body.await.unwrap(), Some(408));
    }
    siege.end("128 slow bodies, 64 slow headers").await;
}

/// A record of TLS that is never whole, as many as there are turns.
#[tokio::test(flavor = "multi_thread")]
async fn who_sends_a_byte_of_a_handshake_at_a_time() {
    let mut siege = Siege::new("[limits]\nhandshake = \"5s\"\n").await;
    let (tick, ticks) = watch::channel(());
    let mut slow = Vec::new();
    for _ in 0..128 {
        let mut stream = TcpStream::connect(siege.service.address).await.unwrap();
        let mut ticks = ticks.clone();
        slow.push(tokio::spawn(async move {
            let mut hello = [22, 3, 1, 64, 0, 1].into_iter().chain([0; 16 * 1024]);
            loop {
                tokio::select! {
                    read = stream.read_u8() => break read.is_err(),
                    ticked = ticks.changed() => {
                        ticked.unwrap();
                        let byte = hello.next().unwrap();
                        // it fails when the gateway has closed, which is read next
                        let _ = stream.write_all(&[byte]).await;
                    }
                }
            }
        }));
    }
    while !slow.iter().all(JoinHandle::is_finished) {
        tick.send_replace(());
        siege.serve().await;
    }
    for closed in slow {
        assert!(closed.await.unwrap());
    }
    siege.end("128 slow handshakes").await;
}

/// Sends `head`, then `rest` again and again until an answer comes.
async fn endless(mut conversation: Conversation, head: String, rest: &str) -> u16 {
    let (mut reader, mut writer) = tokio::io::split(&mut conversation.stream);
    let rest = rest.repeat(4096_usize.div_ceil(rest.len()));
    let write = async {
        let _ = writer.write_all(head.as_bytes()).await;
        while writer.write_all(rest.as_bytes()).await.is_ok() {}
        // the answer may be there all the same
        std::future::pending::<()>().await;
    };
    let read = async {
        let mut answer = [0; 12];
        reader.read_exact(&mut answer).await.unwrap();
        let answer = std::str::from_utf8(&answer).unwrap();
        answer.strip_prefix("HTTP/1.1 ").unwrap().parse().unwrap()
    };
    tokio::select! {
        status = timeout(PATIENCE, read) => status.expect("no answer came"),
        () = write => unreachable!(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_no_end_is_ended() {
    let mut siege = Siege::new("[limits]\nconnections-per-device = 300\n").await;
    let long_size = sized("1099511627776");
    let long_chunk = format!("{CHUNKED}7fffffffffffffff\r\n");
    let extension = format!("{CHUNKED}1;");
    let trailers = format!("{CHUNKED}0\r\n");
    let header = "POST /topics/a HTTP/1.1\r\n";
    let cases = [
        (&*long_size, "{", 413),
        (&long_chunk, "{", 413),
        (CHUNKED, "1000\r\n", 413),
        (CHUNKED, "8\r\n{{{{{{{{\r\n", 413),
        (CHUNKED, "1;a=b\r\n{\r\n", 400),
        (&extension, "a", 400),
        (&extension, " ", 400),
        (&trailers, "x: y\r\n", 400),
        (&trailers, "x", 400),
        (header, "x: y\r\n", 431),
        (header, "x", 431),
        ("POST /", "a", 431),
        ("", "A", 431),
    ];
    let clients = 8;
    let mut attacks = Vec::new();
    for (head, rest, _) in &cases {
        for _ in 0..clients {
            let attack = endless(siege.connect().await, (*head).to_owned(), rest);
            attacks.push(tokio::spawn(attack));
        }
    }
    let answers = siege.serve_during(attacks).await;
    for ((head, rest, status), answers) in cases.iter().zip(answers.chunks(clients)) {
        assert_eq!(answers, vec![*status; clients], "{head:?}, then {rest:?}");
    }
    siege.end("104 clients without end").await;
}

/// Zeros before the size of a chunk are legal, as many as there may be; and who
/// sends without a pause must not outrun the clock.
#[tokio::test(flavor = "multi_thread")]
async fn what_grows_by_nothing_has_its_time() {
    let mut siege = Siege::new(SOON).await;
    let mut attacks = Vec::new();
    for _ in 0..16 {
        let attack = endless(siege.connect().await, format!("{CHUNKED}0"), "0");
        attacks.push(tokio::spawn(attack));
    }
    let answers = siege.serve_during(attacks).await;
    assert_eq!(answers, [408; 16]);
    siege.end("16 sizes of chunks without end").await;
}

/// A body in chunks of a byte costs the sender six times its size, and the
/// gateway no more than its size.
#[tokio::test(flavor = "multi_thread")]
async fn small_chunks_take_no_more_memory_than_large_ones() {
    let mut siege = Siege::new("[limits]\nbody = \"10m\"\nconnections-per-device = 24\n").await;
    let mut attacks = Vec::new();
    for _ in 0..24 {
        let mut conversation = siege.connect().await;
        attacks.push(tokio::spawn(async move {
            conversation.send(CHUNKED.as_bytes()).await;
            let chunks = "1\r\n{\r\n".repeat(64 * 1024);
            conversation.send(chunks.as_bytes()).await;
            conversation
        }));
    }
    // they wait for more
    for mut conversation in siege.serve_during(attacks).await {
        conversation.send(b"0\r\n\r\n").await;
        assert_eq!(conversation.answer().await.status, 200);
    }
    siege.end("24 bodies of 65536 chunks").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lengths_that_are_wrong() {
    let mut siege = Siege::new(SOON).await;
    let beside = "content-length: 2\r\ntransfer-encoding: chunked";
    let with = |headers: &str| format!("POST /topics/a HTTP/1.1\r\nhost: x\r\n{headers}\r\n\r\n");
    let cases: &[(String, &[u16])] = &[
        // what is too much is another request, and too little never comes
        (sized("2") + "{}{}\r\n\r\n", &[200, 400]),
        (sized("9") + "{}", &[408]),
        (sized("131073") + "{}", &[413]),
        (sized("-1"), &[400]),
        (sized("+2") + "{}", &[400]),
        (sized("0x2") + "{}", &[400]),
        (sized("2 2") + "{}", &[400]),
        (sized("2.0") + "{}", &[400]),
        (sized("") + "{}", &[400]),
        (sized("18446744073709551616"), &[400]),
        (sized("99999999999999999999999999"), &[400]),
        (sized("2, 3") + "{}", &[400]),
        (
            with("content-length: 2\r\ncontent-length: 3") + "{}",
            &[400],
        ),
        (
            with("content-length: 3\r\ncontent-length: 2") + "{}",
            &[400],
        ),
        (with(beside) + "zz\r\n", &[400]),
        (with("transfer-encoding: gzip"), &[400]),
        (with("transfer-encoding: chunked, gzip"), &[400]),
        (with("transfer-encoding : chunked") + "0\r\n\r\n", &[400]),
        (format!("{CHUNKED}zz\r\n"), &[400]),
        (format!("{CHUNKED}-1\r\n"), &[400]),
        (format!("{CHUNKED}0x1\r\n"), &[400]),
        (format!("{CHUNKED}\r\n"), &[400]),
        (format!("{CHUNKED}1\r\n{{}}\r\n0\r\n\r\n"), &[400]),
        (format!("{CHUNKED}3\r\n{{}}\r\n"), &[400]),
        (format!("{CHUNKED}2\r\n{{}}\r\n"), &[408]),
        (format!("{CHUNKED}10000000000000000\r\n"), &[400]),
        (format!("{CHUNKED}ffffffffffffffffffffffff\r\n"), &[400]),
        (format!("{CHUNKED}ffffffffffffffff\r\n{{"), &[408]),
    ];
    let mut attacks = Vec::new();
    for (request, answers) in cases {
        let (mut conversation, answers) = (siege.connect().await, *answers);
        let request = request.clone();
        attacks.push(tokio::spawn(async move {
            conversation.send(request.as_bytes()).await;
            for status in answers {
                let answer = conversation.answer().await;
                assert_eq!(answer.status, *status, "{request:?}: {answer:?}");
            }
            conversation.closed().await;
        }));
    }
    siege.serve_during(attacks).await;
    siege.end("28 wrong lengths").await;
}

/// Garbage beneath TLS, in it, and in its place.
#[tokio::test(flavor = "multi_thread")]
async fn garbage_is_answered_and_the_connection_closed() {
    let mut siege = Siege::new(SOON).await;
    let garbage: Vec<u8> = (0..4096_u32).map(|n| ((n * n) >> 3) as u8 | 0x80).collect();
    let mut attacks = Vec::new();
    for _ in 0..32 {
        let (mut inside, mut beneath) = (siege.connect().await, siege.connect().await);
        let (garbage, to) = (garbage.clone(), siege.service.address);
        attacks.push(tokio::spawn(async move {
            inside.send(&garbage).await;
            assert_eq!(inside.answer().await.status, 400);
            inside.closed().await;

            let beneath = beneath.stream.get_mut().0;
            beneath.write_all(&garbage).await.unwrap();
            assert_eq!(closed_with(beneath).await.first(), Some(&ALERT_OR_DATA));

            for instead in [&sized("2").into_bytes(), &garbage] {
                let mut plain = TcpStream::connect(to).await.unwrap();
                plain.write_all(instead).await.unwrap();
                assert_eq!(closed_with(&mut plain).await.first(), Some(&ALERT));
            }
        }));
    }
    siege.serve_during(attacks).await;
    siege.end("128 clients of other protocols").await;
}

/// The first byte of an alert in TLS, before the handshake and after it.
const ALERT: u8 = 21;
const ALERT_OR_DATA: u8 = 23;

/// What comes until the connection is closed.
async fn closed_with(stream: &mut TcpStream) -> Vec<u8> {
    let mut rest = Vec::new();
    let read = timeout(PATIENCE, stream.read_to_end(&mut rest)).await;
    // a reset is the end as well
    let _ = read.expect("it was not closed");
    rest
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_closes_his_half_is_answered_and_gone() {
    let mut siege = Siege::new(SOON).await;
    let mut attacks = Vec::new();
    for _ in 0..32 {
        let (mut asked, mut broken) = (siege.connect().await, siege.connect().await);
        let (mut silent, mut cut) = (siege.connect().await, siege.connect().await);
        let mut stranger = TcpStream::connect(siege.service.address).await.unwrap();
        attacks.push(tokio::spawn(async move {
            asked.send((sized("2") + "{}").as_bytes()).await;
            asked.stream.shutdown().await.unwrap();
            assert_eq!(asked.answer().await.status, 200);
            asked.closed().await;

            broken.send((sized("9") + "{}").as_bytes()).await;
            broken.stream.shutdown().await.unwrap();
            assert_eq!(broken.answer().await.status, 400);
            broken.closed().await;

            silent.stream.shutdown().await.unwrap();
            silent.closed().await;

            // without a word of TLS
            cut.send((sized("9") + "{}").as_bytes()).await;
            cut.stream.get_mut().0.shutdown().await.unwrap();
            let _ = timeout(PATIENCE, cut.try_answer()).await.unwrap();
            stranger.shutdown().await.unwrap();
            closed_with(&mut stranger).await;
        }));
    }
    siege.serve_during(attacks).await;
    siege.end("160 half-closed connections").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_never_reads_his_answers_is_cut_off() {
    let mut siege = Siege::new(SOON).await;
    let mut attacks = Vec::new();
    for _ in 0..8 {
        let socket = TcpSocket::new_v4().unwrap();
        // it shall be full soon
        socket.set_recv_buffer_size(4096).unwrap();
        let stream = socket.connect(siege.service.address).await.unwrap();
        let tls = Arc::new(siege.hostile.tls.clone());
        let mut conversation = talk(stream, tls).await.unwrap();
        attacks.push(tokio::spawn(async move {
            let requests = "GET / HTTP/1.1\r\nhost: x\r\n\r\n".repeat(100);
            let write = async {
                while let Ok(()) = conversation.stream.write_all(requests.as_bytes()).await {}
            };
            timeout(PATIENCE, write).await.expect("it was not cut off");
        }));
    }
    siege.serve_during(attacks).await;
    siege.end("8 clients that never read").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_is_not_negotiated_twice() {
    let mut siege = Siege::new(SOON).await;
    siege.hostile.write_files(&siege.world);
    let mut attacks = Vec::new();
    for _ in 0..4 {
        let mut client = Command::new("openssl")
            .args(["s_client", "-tls1_2", "-connect"])
            .arg(siege.service.address.to_string())
            .arg("-CAfile")
            .arg(siege.world.path("gateway-ca.crt.pem"))
            .arg("-cert")
            .arg(siege.world.path("device.crt.pem"))
            .arg("-key")
            .arg(siege.world.path("device.key.pem"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("openssl cannot be run; apt-get install openssl");
        let mut stdin = client.stdin.take().unwrap();
        stdin.write_all(b"R\n").unwrap();
        attacks.push(tokio::task::spawn_blocking(move || {
            // what it writes comes when it has given up; its input stays open
            let output = client.wait_with_output().unwrap();
            drop(stdin);
            [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned())
        }));
    }
    for [stdout, stderr] in siege.serve_during(attacks).await {
        assert!(stdout.contains("Verify return code: 0 (ok)"), "{stdout}");
        assert!(stderr.contains("RENEGOTIATING"), "{stderr}");
        assert!(stderr.contains("no renegotiation"), "{stderr}");
    }
    siege.end("4 renegotiations").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_who_say_nothing() {
    for (held, limits) in [
        (1000, "[limits]\nhandshake = \"10m\"\n"),
        (
            9900,
            "[limits]\nhandshake = \"10m\"\nhandshakes = 1200\nconnections-per-device = 1000\n",
        ),
    ] {
        let mut siege = Siege::new(limits).await;
        siege.hostile.write_files(&siege.world);
        let to = siege.service.address;
        let devices = Idlers::start(&siege.world, to, 1000, true);
        siege.serve().await;
        let strangers = Idlers::start(&siege.world, to, 9000, false);
        // connections are taken in their order: now it has had all of those
        siege.serve().await;
        siege.serve().await;
        let open = siege.open_files();
        assert!(open >= held, "{open}");
        let what = format!("10,000 idle connections, {open} files open");
        siege.end(&what).await;
        drop((strangers, devices));
    }
}

/// This test program once more, with connections that do nothing.
struct Idlers {
    process: Child,
    /// Closing it ends them.
    _stdin: ChildStdin,
}

impl Idlers {
    /// Returns when all of them are connected and, with `proven`, have proven
    /// that they are the hostile device.
    fn start(world: &World, to: SocketAddr, count: usize, proven: bool) -> Self {
        let directory = world.directory.path().to_str().unwrap();
        let this = std::env::current_exe().unwrap();
        let mut process = Command::new(this)
            .args(["--exact", "hostile::role_idlers", "--nocapture"])
            .env(
                "ZK_TEST_IDLERS",
                format!("{to} {count} {proven} {directory}"),
            )
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = process.stdin.take().unwrap();
        let mut said = BufReader::new(process.stdout.take().unwrap()).lines();
        let idlers = Self {
            process,
            _stdin: stdin,
        };
        assert!(said.any(|line| line.unwrap() == "connected"));
        idlers
    }
}

impl Drop for Idlers {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn role_idlers() {
    let Ok(told) = std::env::var("ZK_TEST_IDLERS") else {
        return;
    };
    let told: Vec<_> = told.splitn(4, ' ').collect();
    let [to, count, proven, directory] = told[..] else {
        panic!("{told:?}");
    };
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let all = Rlimit {
        current: maximum,
        maximum,
    };
    setrlimit(Resource::Nofile, all).unwrap();

    let to: SocketAddr = to.parse().unwrap();
    let tls = (proven == "true").then(|| Arc::new(Device::read_files(Path::new(directory))));
    // as many at once as a listener lets wait
    let places = Arc::new(Semaphore::new(100));
    let mut connecting = JoinSet::new();
    for _ in 0..count.parse().unwrap() {
        let place = Arc::clone(&places).acquire_owned().await.unwrap();
        let tls = tls.clone();
        connecting.spawn(async move {
            let idle = match tls {
                None => Ok(TcpStream::connect(to).await.unwrap()),
                Some(tls) => {
                    let stream = connect_from(PROVEN, to).await;
                    Err(talk(stream, tls).await.unwrap())
                }
            };
            drop(place);
            idle
        });
    }
    let _idle = connecting.join_all().await;
    println!("\nconnected");
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}
