//! What the gateway takes for HTTP, and how long it waits for it.

use std::sync::Arc;
use std::time::Duration;

use crate::world::{PATIENCE, World, post, talk};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::oneshot;
use tokio::time::timeout;
use zk_envelope::MAX_MESSAGE;
use zk_gateway::{Limits, run_metrics};

/// For a step that never ends.
const SHORT: Duration = Duration::from_millis(50);

#[tokio::test]
async fn only_a_publish_is_taken() {
    let world = World::new().await;
    let running = world.start().await;
    let device = world.device("pi-01").await;
    let mut conversation = running.connect(&device.tls).await;
    let long = "a".repeat(256);
    let cases = [
        ("POST", "/topics/Zymkey%2Fpi-01?qos=1".to_owned(), 200),
        ("POST", "/topics/Zymkey%2Fpi-01?qos=0".to_owned(), 200),
        ("POST", "/topics/Zymkey%2Fpi-01".to_owned(), 200),
        ("POST", "/topics/Zymkey%2fpi-01?qos=1".to_owned(), 200),
        ("POST", "/topics/Zymkey/pi-01?qos=1".to_owned(), 200),
        ("POST", format!("/topics/{long}"), 200),
        ("POST", "/topics/a/b/c/d/e/f/g/h".to_owned(), 200),
        ("POST", format!("/topics/{long}a"), 400),
        ("POST", "/topics/a/b/c/d/e/f/g/h/i".to_owned(), 400),
        ("POST", "/topics/".to_owned(), 400),
        ("POST", "/topics/a?qos=2".to_owned(), 400),
        ("POST", "/topics/a?qos=".to_owned(), 400),
        ("POST", "/topics/a?qos=1&qos=1".to_owned(), 400),
        ("POST", "/topics/a?qos=1&retain=true".to_owned(), 400),
        ("POST", "/topics/a?QOS=1".to_owned(), 400),
        ("POST", "/topics/%".to_owned(), 400),
        ("POST", "/topics/%2".to_owned(), 400),
        ("POST", "/topics/%zz".to_owned(), 400),
        ("POST", "/topics/%+1".to_owned(), 400),
        ("POST", "/topics/%ff".to_owned(), 400),
        ("POST", "/topics/a%00b".to_owned(), 400),
        ("POST", "/topics/%23".to_owned(), 400),
        ("POST", "/topics/a/+".to_owned(), 400),
        ("POST", "/topics".to_owned(), 404),
        ("POST", "/".to_owned(), 404),
        ("POST", "/things/pi-01/shadow".to_owned(), 404),
        ("POST", "/topics%2Fa".to_owned(), 404),
        ("OPTIONS", "*".to_owned(), 404),
        ("GET", "/topics/a".to_owned(), 405),
        ("PUT", "/topics/a".to_owned(), 405),
        ("BREW", "/topics/a".to_owned(), 405),
    ];
    for (method, target, status) in cases {
        let request = format!("{method} {target} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n");
        let answer = conversation.ask(request.as_bytes()).await;
        assert_eq!(answer.status, status, "{method} {target}: {answer:?}");
        assert_eq!(answer.headers["x-amzn-requestid"], answer.member("traceId"));
        assert_eq!(
            answer.headers.get("allow").map(|s| &**s),
            (status == 405).then_some("POST")
        );
        let error_type = match status {
            200 => None,
            400 => Some("InvalidRequestException"),
            404 => Some("ResourceNotFoundException"),
            _ => Some("MethodNotAllowedException"),
        };
        assert_eq!(
            answer.headers.get("x-amzn-errortype").map(|s| &**s),
            error_type
        );
    }
    assert_eq!(running.gateway.counters().connections, 1);
}

/// Who closes a connection with a body unread resets it, and the client may
/// never see why.
#[tokio::test]
async fn a_refused_target_takes_its_body_along() {
    let world = World::new().await;
    let running = world.start().await;
    let device = world.device("pi-01").await;
    let mut conversation = running.connect(&device.tls).await;
    let body = vec![b' '; MAX_MESSAGE];
    for (target, status) in [("/topics/", 400), ("/things", 404), ("/topics/a", 200)] {
        let answer = conversation.ask(&post(target, &body)).await;
        assert_eq!(answer.status, status, "{target}: {answer:?}");
    }
    assert_eq!(running.gateway.counters().connections, 1);
    assert_eq!(running.gateway.counters().bytes, MAX_MESSAGE as u64);
}

#[tokio::test]
async fn a_message_has_128_kib_and_not_a_byte_more() {
    let world = World::new().await;
    let running = world.start().await;
    let device = world.device("pi-01").await;
    let chunked = |size: usize| {
        let head = "POST /topics/a HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n";
        let body = vec![b' '; size];
        [
            format!("{head}{size:x}\r\n").as_bytes(),
            &body,
            b"\r\n0\r\n\r\n",
        ]
        .concat()
    };
    let plain = |size: usize| post("/topics/a", &vec![b' '; size]);
    for (request, status) in [
        (plain(MAX_MESSAGE), 200),
        (plain(MAX_MESSAGE + 1), 413),
        // the answer is read when all of it is sent
        (plain(64 * MAX_MESSAGE), 413),
        (chunked(64 * MAX_MESSAGE), 413),
        (chunked(MAX_MESSAGE), 200),
        (chunked(MAX_MESSAGE + 1), 413),
    ] {
        let mut conversation = running.connect(&device.tls).await;
        let answer = conversation.ask(&request).await;
        assert_eq!(answer.status, status, "{answer:?}");
        if status == 413 {
            assert_eq!(
                answer.headers["x-amzn-errortype"],
                "RequestEntityTooLargeException"
            );
        }
    }
    // told from the header alone, if the client waits for it
    let mut conversation = running.connect(&device.tls).await;
    let head = "POST /topics/a HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999\r\n\
                expect: 100-continue\r\n\r\n";
    assert_eq!(conversation.ask(head.as_bytes()).await.status, 413);
    assert_eq!(running.gateway.counters().bytes, 2 * MAX_MESSAGE as u64);
}

#[tokio::test]
async fn broken_framing_is_refused_and_the_connection_closed() {
    let world = World::new().await;
    let running = world.start().await;
    let device = world.device("pi-01").await;
    let many: String = (0..100).map(|n| format!("x-{n}: 1\r\n")).collect();
    let head = |rest: &str| format!("POST /topics/a HTTP/1.1\r\nhost: x\r\n{rest}\r\n\r\n");
    let cases = [
        ("\0\0\0\0\r\n\r\n".to_owned(), 400),
        ("hello\r\n\r\n".to_owned(), 400),
        ("POST /topics/a HTTP/3.0\r\n\r\n".to_owned(), 400),
        ("POST /topics/a b HTTP/1.1\r\n\r\n".to_owned(), 400),
        (head("content-length: -1"), 400),
        (head("content-length: 1\r\ncontent-length: 2"), 400),
        (head("transfer-encoding: gzip"), 400),
        (head("bad header: 1"), 400),
        (head("x: a\0b"), 400),
        (head(&format!("x: {}", "a".repeat(32 * 1024))), 431),
        (head(many.trim_end()), 431),
        (head("transfer-encoding: chunked") + "zz\r\n", 400),
        (
            head("transfer-encoding: chunked") + "ffffffffffffffffff\r\n",
            400,
        ),
    ];
    for (request, status) in cases {
        let mut conversation = running.connect(&device.tls).await;
        let answer = conversation.ask(request.as_bytes()).await;
        let shown = request.get(..80).unwrap_or(&request);
        assert_eq!(answer.status, status, "{shown:?}: {answer:?}");
        conversation.closed().await;
    }
    assert!(world.quarantined().await.is_empty());
}

/// What one server takes for the length, another may not: nobody gets to
/// smuggle a request in a body.
#[tokio::test]
async fn a_length_beside_chunks_does_not_count() {
    let world = World::new().await;
    let running = world.start().await;
    let device = world.device("pi-01").await;
    let mut conversation = running.connect(&device.tls).await;
    let request = "POST /topics/a HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\
                   transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n";
    let answer = conversation.ask(request.as_bytes()).await;
    assert!(matches!(answer.status, 200 | 400), "{answer:?}");
    if answer.status == 200 {
        assert_eq!(running.gateway.counters().bytes, 2);
    }
}

#[tokio::test]
async fn connections_are_kept_and_requests_may_come_in_one_go() {
    let world = World::new().await;
    let running = world.start().await;
    let mut device = world.device("pi-01").await;
    let mut conversation = running.connect(&device.tls).await;
    let mut requests = Vec::new();
    for sequence in 1..=20 {
        let message = device.message([sequence]);
        requests.push(device.post(&message));
    }
    conversation.send(&requests.concat()).await;
    for _ in 0..20 {
        assert_eq!(conversation.answer().await.status, 200);
    }
    // byte by byte is a request too
    for byte in &requests[0] {
        conversation.send(&[*byte]).await;
    }
    assert_eq!(conversation.answer().await.status, 200);
    assert_eq!(world.stored(&device).await.len(), 20);
    assert_eq!(running.gateway.counters().connections, 1);
}

#[tokio::test]
async fn a_client_says_when_the_connection_ends() {
    let world = World::new().await;
    let running = world.start().await;
    let device = world.device("pi-01").await;
    for (version, header, kept) in [
        ("1.1", "x: y", true),
        ("1.1", "connection: close", false),
        ("1.0", "x: y", false),
        ("1.0", "connection: keep-alive", true),
    ] {
        let mut conversation = running.connect(&device.tls).await;
        let request =
            format!("POST /topics/a HTTP/{version}\r\n{header}\r\ncontent-length: 0\r\n\r\n");
        let answer = conversation.ask(request.as_bytes()).await;
        assert_eq!(answer.line, format!("HTTP/{version} 200 OK"));
        match kept {
            true => assert_eq!(conversation.ask(request.as_bytes()).await.status, 200),
            false => conversation.closed().await,
        }
    }
}

#[tokio::test]
async fn silence_and_slow_headers_end_the_connection() {
    let world = World::new().await;
    let running = world
        .start_with(Limits {
            idle: SHORT,
            ..Limits::default()
        })
        .await;
    let device = world.device("pi-01").await;
    running.connect(&device.tls).await.closed().await;

    let mut conversation = running.connect(&device.tls).await;
    conversation.send(b"POST /topics/a HT").await;
    conversation.closed().await;
}

#[tokio::test]
async fn a_slow_body_is_told_so() {
    let world = World::new().await;
    let running = world
        .start_with(Limits {
            body: SHORT,
            ..Limits::default()
        })
        .await;
    let device = world.device("pi-01").await;
    let mut conversation = running.connect(&device.tls).await;
    let request = "POST /topics/a HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{";
    let answer = conversation.ask(request.as_bytes()).await;
    assert_eq!(answer.status, 408);
    assert_eq!(answer.headers["connection"], "close");
    conversation.closed().await;
    assert!(world.quarantined().await.is_empty());
}

#[tokio::test]
async fn a_body_that_breaks_off_is_not_stored() {
    let world = World::new().await;
    let running = world.start().await;
    let device = world.device("pi-01").await;
    let mut conversation = running.connect(&device.tls).await;
    conversation
        .send(b"POST /topics/a HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{")
        .await;
    conversation.stream.shutdown().await.unwrap();
    let _ = conversation.try_answer().await;
    running.stop().await;
    assert!(world.quarantined().await.is_empty());
}

#[tokio::test]
async fn a_slow_handshake_is_given_up() {
    let world = World::new().await;
    let running = world
        .start_with(Limits {
            handshake: SHORT,
            ..Limits::default()
        })
        .await;
    let mut stream = TcpStream::connect(running.address).await.unwrap();
    let read = timeout(PATIENCE, stream.read_to_end(&mut Vec::new()))
        .await
        .unwrap();
    assert_eq!(read.unwrap_or(0), 0);
    assert_eq!(
        running.gateway.counters().handshakes_failed,
        [("timeout", 1)].into()
    );
}

#[tokio::test]
async fn strangers_in_the_handshake_do_not_take_the_place_of_devices() {
    let world = World::new().await;
    let limits = Limits {
        handshakes: 1,
        ..Limits::default()
    };
    let running = world.start_with(limits).await;
    let device = world.device("pi-01").await;
    let mut connected = running.connect(&device.tls).await;
    let _stranger = TcpStream::connect(running.address).await.unwrap();
    for _ in 0..3 {
        assert_eq!(connected.ask(&device.post(b"{}")).await.status, 200);
    }
}

/// Whoever fills the door from one address, and keeps quiet, stands in nobody's
/// way but his own.
#[tokio::test]
async fn strangers_in_the_handshake_do_not_keep_devices_out() {
    let world = World::new().await;
    let limits = Limits {
        handshakes: 2,
        handshake: PATIENCE * 10,
        ..Limits::default()
    };
    let running = world.start_with(limits).await;
    let device = world.device("pi-01").await;
    // two whose turn it is, sixteen who wait, and two too many
    let mut strangers = Vec::new();
    for _ in 0..20 {
        strangers.push(TcpStream::connect(running.address).await.unwrap());
    }
    for _ in 0..2 {
        let mut stranger = strangers.pop().unwrap();
        let read = timeout(PATIENCE, stranger.read(&mut [0])).await.unwrap();
        assert_eq!(read.unwrap_or(0), 0);
    }
    assert_eq!(
        running.gateway.counters().handshakes_failed,
        [("crowded", 2)].into()
    );

    let from = "127.0.0.2:0".parse().unwrap();
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(from).unwrap();
    let stream = socket.connect(running.address).await.unwrap();
    // it takes the turn of the first, before those who waited longer
    let mut first = strangers.remove(0);
    let read = timeout(PATIENCE, first.read(&mut [0])).await.unwrap();
    assert_eq!(read.unwrap_or(0), 0);
    let mut conversation = talk(stream, Arc::new(device.tls.clone())).await.unwrap();
    assert_eq!(conversation.ask(&device.post(b"{}")).await.status, 200);

    // All who are left get their turn: none is lost on the way.
    for stranger in strangers {
        drop(stranger);
    }
    let mut conversation = running.connect(&device.tls).await;
    assert_eq!(conversation.ask(&device.post(b"{}")).await.status, 200);
}

#[tokio::test]
async fn a_connection_too_many_closes_the_oldest_of_its_device() {
    let world = World::new().await;
    let limits = Limits {
        connections_per_device: 2,
        ..Limits::default()
    };
    let running = world.start_with(limits).await;
    let pi_01 = world.device("pi-01").await;
    let pi_02 = world.device("pi-02").await;
    let mut other = running.connect(&pi_02.tls).await;
    let mut connections = Vec::new();
    for _ in 0..3 {
        let mut conversation = running.connect(&pi_01.tls).await;
        // the answer shows that the connection was entered
        assert_eq!(conversation.ask(&pi_01.post(b"{}")).await.status, 200);
        connections.push(conversation);
    }
    connections[0].closed().await;
    assert_eq!(connections[1].ask(&pi_01.post(b"{}")).await.status, 200);
    assert_eq!(connections[2].ask(&pi_01.post(b"{}")).await.status, 200);
    assert_eq!(other.ask(&pi_02.post(b"{}")).await.status, 200);
    let counters = running.gateway.counters();
    assert_eq!((counters.displaced, counters.connections_open), (1, 3));
}

#[tokio::test]
async fn a_device_waits_for_a_free_connection() {
    let world = World::new().await;
    let running = world
        .start_with(Limits {
            connections: 1,
            ..Limits::default()
        })
        .await;
    let pi_01 = world.device("pi-01").await;
    let pi_02 = world.device("pi-02").await;
    let mut first = running.connect(&pi_01.tls).await;
    assert_eq!(first.ask(&pi_01.post(b"{}")).await.status, 200);
    let mut second = running.connect(&pi_02.tls).await;
    second.send(&pi_02.post(b"{}")).await;
    assert_eq!(first.ask(&pi_01.post(b"{}")).await.status, 200);
    assert_eq!(running.gateway.counters().connections, 1);
    drop(first);
    assert_eq!(second.answer().await.status, 200);
}

/// After a link broke, the gateway may hold nothing but connections that are
/// dead, and every device comes again.
#[tokio::test]
async fn a_device_that_comes_again_takes_its_own_place() {
    let world = World::new().await;
    let running = world
        .start_with(Limits {
            connections: 1,
            handshake: PATIENCE * 2,
            ..Limits::default()
        })
        .await;
    let device = world.device("pi-01").await;
    let mut dead = running.connect(&device.tls).await;
    assert_eq!(dead.ask(&device.post(b"{}")).await.status, 200);
    let mut alive = running.connect(&device.tls).await;
    assert_eq!(alive.ask(&device.post(b"{}")).await.status, 200);
    dead.closed().await;
    assert_eq!(running.gateway.counters().displaced, 1);
}

/// Nor does one keep its place that is closed and whose device does not let go.
#[tokio::test]
async fn a_connection_that_lingers_gives_way_to_the_next() {
    let world = World::new().await;
    let running = world
        .start_with(Limits {
            connections: 1,
            handshake: PATIENCE * 2,
            body: PATIENCE * 2,
            ..Limits::default()
        })
        .await;
    let device = world.device("pi-01").await;
    let mut lingers = running.connect(&device.tls).await;
    let last = String::from_utf8(device.post(b"{}")).unwrap();
    let last = last.replace("host:", "connection: close\r\nhost:");
    assert_eq!(lingers.ask(last.as_bytes()).await.status, 200);
    lingers.closed().await;
    let mut next = running.connect(&device.tls).await;
    assert_eq!(next.ask(&device.post(b"{}")).await.status, 200);
    assert_eq!(running.gateway.counters().displaced, 1);
}

#[tokio::test]
async fn an_old_connection_is_closed_after_an_answer() {
    let world = World::new().await;
    let running = world
        .start_with(Limits {
            age: SHORT,
            ..Limits::default()
        })
        .await;
    let device = world.device("pi-01").await;
    running.connect(&device.tls).await.closed().await;
    assert_eq!(running.gateway.counters().connections, 1);
}

#[tokio::test]
async fn stopping_answers_what_is_under_way_and_closes_what_is_idle() {
    let world = World::new().await;
    let running = world.start().await;
    let mut device = world.device("pi-01").await;
    let address = running.address;
    let mut idle = running.connect(&device.tls).await;
    let mut busy = running.connect(&device.tls).await;
    let message = device.message([1]);
    let head = format!(
        "POST /topics/Zymkey%2Fpi-01?qos=1 HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\
         expect: 100-continue\r\n\r\n",
        message.len()
    );
    // the gateway asks for the body: the request is under way
    assert_eq!(
        busy.ask(head.as_bytes()).await.line,
        "HTTP/1.1 100 Continue"
    );

    let stopping = running.begin_stop();
    idle.closed().await;
    assert!(!stopping.is_finished());
    let answer = busy.ask(&message).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.headers["connection"], "close");
    busy.closed().await;
    timeout(PATIENCE, stopping).await.unwrap().unwrap();
    assert_eq!(world.stored(&device).await.len(), 1);
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn stopping_does_not_wait_for_ever() {
    let world = World::new().await;
    let running = world
        .start_with(Limits {
            stop: SHORT,
            ..Limits::default()
        })
        .await;
    let device = world.device("pi-01").await;
    let mut busy = running.connect(&device.tls).await;
    let head = "POST /topics/a HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\
                expect: 100-continue\r\n\r\n";
    assert_eq!(
        busy.ask(head.as_bytes()).await.line,
        "HTTP/1.1 100 Continue"
    );
    running.stop().await;
    busy.closed().await;
    assert!(world.quarantined().await.is_empty());
}

#[tokio::test]
async fn metrics_and_health_are_served_apart() {
    let world = World::new().await;
    let running = world.start().await;
    let mut device = world.device("pi-01").await;
    let message = device.message([1, 2]);
    let mut conversation = running.connect(&device.tls).await;
    assert_eq!(conversation.ask(&device.post(&message)).await.status, 200);
    let forged = device.forged(3);
    assert_eq!(conversation.ask(&device.post(&forged)).await.status, 200);

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = tokio::spawn(run_metrics(listener, running.gateway.clone(), async {
        let _ = stopped.await;
    }));
    let get = async |path: &str| {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        timeout(PATIENCE, stream.read_to_string(&mut answer))
            .await
            .unwrap()
            .unwrap();
        answer
    };
    let page = get("/metrics").await;
    assert!(page.starts_with("HTTP/1.1 200 OK\r\n"), "{page}");
    assert!(
        page.contains("content-type: text/plain; version=0.0.4\r\n"),
        "{page}"
    );
    for line in [
        "# TYPE zk_gateway_records_stored_total counter",
        "zk_gateway_records_stored_total 2",
        "zk_gateway_answers_total{status=\"200\"} 2",
        "zk_gateway_records_quarantined_total{reason=\"bad-signature\"} 1",
        "zk_gateway_connections_open 1",
        "zk_gateway_store_failing 0",
    ] {
        assert!(
            page.lines().any(|found| found == line),
            "{line} is missing in {page}"
        );
    }
    assert!(get("/healthz").await.ends_with("\r\n\r\nok\n"));
    assert!(get("/topics/a").await.starts_with("HTTP/1.1 404 "));

    world.store.delete_tables().await.unwrap();
    let stranger = world.stranger("pi-99");
    let mut conversation = running.connect(&stranger.tls).await;
    assert_eq!(conversation.ask(&stranger.post(b"{}")).await.status, 503);
    assert!(get("/healthz").await.starts_with("HTTP/1.1 503 "));

    stop.send(()).unwrap();
    timeout(PATIENCE, serving).await.unwrap().unwrap();
}
