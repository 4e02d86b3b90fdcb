//! One message at a time.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use crate::server::{Act, PATIENCE, Pki, Server, TRACE_ID};
use rustls::version::{TLS12, TLS13};
use rustls::{ALL_VERSIONS, ClientConfig};
use zk_publish::{Answer, Client, Phase, PublishError, Target, Timeouts};

const TOPIC: &str = "Zymkey/pi-01";

/// Long enough not to matter.
const PATIENT: Timeouts = Timeouts {
    connect: PATIENCE,
    handshake: PATIENCE,
    response: PATIENCE,
};

/// For a step that never ends.
const SHORT: Duration = Duration::from_millis(20);

fn client(server: &Server, tls: ClientConfig) -> Client {
    client_with(&server.endpoint(), tls, PATIENT)
}

fn client_with(endpoint: &str, tls: ClientConfig, timeouts: Timeouts) -> Client {
    Client::new(
        Target::new(endpoint, TOPIC).unwrap(),
        Arc::new(tls),
        timeouts,
    )
}

#[tokio::test]
async fn a_message_is_posted_as_aws_iot_wants_it() {
    let pki = Pki::new();
    let server = Server::start(pki.server(ALL_VERSIONS), |_, _| Act::Reply(200));
    let delivered = client(&server, pki.device("pi-01"))
        .publish("{}")
        .await
        .unwrap();

    assert_eq!(delivered.trace_id.as_deref(), Some(TRACE_ID));
    let seen = server.next();
    assert_eq!(seen.line, "POST /topics/Zymkey%2Fpi-01?qos=1 HTTP/1.1");
    assert_eq!(seen.headers["host"], server.endpoint());
    assert_eq!(seen.headers["content-type"], "application/json");
    assert_eq!(seen.headers["content-length"], "2");
    assert_eq!(seen.headers.get("transfer-encoding"), None);
    assert_eq!(seen.alpn, None);
    assert_eq!(seen.body, b"{}");
}

#[tokio::test]
async fn every_2xx_is_a_delivery_even_without_a_body_to_read() {
    let pki = Pki::new();
    for act in [
        Act::Reply(202),
        Act::ReplyWith(204, ("x-amzn-RequestId", TRACE_ID), Vec::new()),
        Act::ReplyWith(200, ("x-other", "1"), b"not json".to_vec()),
        Act::ReplyWith(200, ("x-other", "1"), vec![b'x'; 1024 * 1024]),
    ] {
        let server = Server::start(pki.server(ALL_VERSIONS), move |_, _| act.clone());
        let delivered = client(&server, pki.device("pi-01"))
            .publish("{}")
            .await
            .unwrap();
        assert_eq!(delivered.trace_id.as_deref(), Some(TRACE_ID));
    }
}

#[tokio::test]
async fn one_connection_serves_all_messages() {
    let pki = Pki::new();
    let server = Server::start(pki.server(ALL_VERSIONS), |number, _| match number {
        1 => Act::Reply(500),
        _ => Act::Reply(200),
    });
    let mut client = client(&server, pki.device("pi-01"));
    for number in 0..5 {
        assert_eq!(client.publish("{}").await.is_ok(), number != 1);
        assert_eq!(server.next().connection, 1);
    }
    assert_eq!(client.connections(), 1);
}

#[tokio::test]
async fn a_connection_that_went_stale_is_replaced_without_an_error() {
    let pki = Pki::new();
    let server = Server::start(pki.server(ALL_VERSIONS), |_, _| Act::ReplyThenClose(200));
    let mut client = client(&server, pki.device("pi-01"));
    for number in 1..=3 {
        client.publish("{}").await.unwrap();
        let seen = server.next();
        assert_eq!(seen.connection, number);
        assert_eq!(seen.headers.get("connection"), None);
        // the client's key signs only once when the server lets sessions resume
        assert_eq!(seen.resumed, number > 1);
    }
    assert_eq!(client.connections(), 3);
}

#[tokio::test]
async fn a_kept_alive_connection_closed_over_a_message_costs_one_repeat() {
    let pki = Pki::new();
    let server = Server::start(pki.server(ALL_VERSIONS), |number, _| match number {
        0 => Act::Reply(200),
        1 => Act::Close,
        _ => Act::Reply(200),
    });
    let mut client = client(&server, pki.device("pi-01"));
    client.publish("first").await.unwrap();
    client.publish("second").await.unwrap();

    let seen: Vec<_> = (0..3)
        .map(|_| server.next())
        .map(|s| (s.connection, s.body))
        .collect();
    let expected = [(1, &b"first"[..]), (1, b"second"), (2, b"second")];
    assert_eq!(
        seen.iter().map(|(c, b)| (*c, &b[..])).collect::<Vec<_>>(),
        expected
    );
}

#[tokio::test]
async fn a_new_connection_closed_over_a_message_is_an_error() {
    let pki = Pki::new();
    let server = Server::start(pki.server(ALL_VERSIONS), |_, _| Act::Close);
    let mut client = client(&server, pki.device("pi-01"));
    let error = client.publish("{}").await.unwrap_err();

    assert!(matches!(error, PublishError::Closed { .. }), "{error:?}");
    assert!(
        error.to_string().contains("certificate is not accepted"),
        "{error}"
    );
    server.next();
    assert_eq!(server.rest().len(), 0);
}

#[tokio::test]
async fn each_status_has_its_meaning() {
    let refused = |error: &PublishError| matches!(error, PublishError::Refused { .. });
    let forbidden = |error: &PublishError| matches!(error, PublishError::Forbidden { .. });
    let busy = |error: &PublishError| matches!(error, PublishError::Busy { .. });
    let unexpected = |error: &PublishError| matches!(error, PublishError::Unexpected { .. });
    type Is = fn(&PublishError) -> bool;
    let cases: [(u16, Is); 13] = [
        (400, refused),
        (413, refused),
        (401, forbidden),
        (403, forbidden),
        (408, busy),
        (429, busy),
        (500, busy),
        (503, busy),
        (599, busy),
        (302, unexpected),
        (404, unexpected),
        (405, unexpected),
        (431, unexpected),
    ];
    let pki = Pki::new();
    let server = Server::start(pki.server(ALL_VERSIONS), move |n, _| Act::Reply(cases[n].0));
    let mut client = client(&server, pki.device("pi-01"));
    for (status, is) in cases {
        let error = client.publish("{}").await.unwrap_err();
        assert!(is(&error), "{status}: {error:?}");
        assert!(error.to_string().contains(&status.to_string()), "{error}");
    }
    assert_eq!(client.connections(), 1);
}

#[tokio::test]
async fn an_answer_is_told_in_the_servers_words_made_harmless() {
    let pki = Pki::new();
    let long = "x".repeat(5000);
    let body = format!(r#"{{"message":"no \u001b[31m{long}","traceId":"t","more":1}}"#);
    let server = Server::start(pki.server(ALL_VERSIONS), move |_, _| {
        Act::ReplyWith(
            403,
            ("x-amzn-ErrorType", "ForbiddenException"),
            body.clone().into(),
        )
    });
    let error = client(&server, pki.device("pi-01"))
        .publish("{}")
        .await
        .unwrap_err();

    let PublishError::Forbidden {
        answer:
            Answer {
                status,
                error_type,
                message,
                trace_id,
                ..
            },
    } = error
    else {
        panic!("{error:?}")
    };
    assert_eq!(status, 403);
    assert_eq!(error_type.as_deref(), Some("ForbiddenException"));
    assert_eq!(trace_id.as_deref(), Some("t"));
    let message = message.unwrap();
    assert!(message.starts_with("no [31mxxx"), "{message}");
    assert_eq!(message.len(), 256);
}

#[tokio::test]
async fn retry_after_is_read_in_seconds_only() {
    let pki = Pki::new();
    let cases = [
        ("7", Some(Duration::from_secs(7))),
        ("Wed, 21 Oct 2026 07:28:00 GMT", None),
        ("-1", None),
        ("99999999999999999999", None),
    ];
    let server = Server::start(pki.server(ALL_VERSIONS), move |n, _| {
        Act::ReplyWith(429, ("retry-after", cases[n].0), Vec::new())
    });
    let mut client = client(&server, pki.device("pi-01"));
    for (text, expected) in cases {
        let error = client.publish("{}").await.unwrap_err();
        let PublishError::Busy { retry_after, .. } = error else {
            panic!("{error:?}")
        };
        assert_eq!(retry_after, expected, "{text}");
    }
}

#[tokio::test]
async fn a_server_that_never_answers_is_given_up() {
    let pki = Pki::new();
    let server = Server::start(pki.server(ALL_VERSIONS), |number, _| match number {
        0 => Act::Hang,
        _ => Act::Reply(200),
    });
    let timeouts = Timeouts {
        response: SHORT,
        ..PATIENT
    };
    let mut impatient = client_with(&server.endpoint(), pki.device("pi-01"), timeouts);
    let error = impatient.publish("{}").await.unwrap_err();
    assert!(
        matches!(
            error,
            PublishError::TimedOut {
                phase: Phase::Response,
                after: SHORT
            }
        ),
        "{error:?}"
    );
    assert_eq!(server.next().connection, 1);

    // the answer may still come on that connection, so it is never used again
    let _ = impatient.publish("{}").await;
    assert_eq!(server.next().connection, 2);
}

#[tokio::test]
async fn limits_longer_than_time_itself_are_none() {
    let pki = Pki::new();
    let server = Server::start(pki.server(ALL_VERSIONS), |_, _| Act::Reply(200));
    let timeouts = Timeouts {
        connect: Duration::MAX,
        handshake: Duration::MAX,
        response: Duration::MAX,
    };
    let mut client = client_with(&server.endpoint(), pki.device("pi-01"), timeouts);
    client.publish("{}").await.unwrap();
}

#[tokio::test]
async fn an_answer_whose_body_never_ends_is_an_answer() {
    let pki = Pki::new();
    let server = Server::start(pki.server(ALL_VERSIONS), |number, _| match number {
        0 => Act::ReplyThenHang(200),
        _ => Act::Reply(200),
    });
    let timeouts = Timeouts {
        response: Duration::from_millis(500),
        ..PATIENT
    };
    let mut client = client_with(&server.endpoint(), pki.device("pi-01"), timeouts);
    client.publish("{}").await.unwrap();
    client.publish("{}").await.unwrap();
    assert_eq!((server.next().connection, server.next().connection), (1, 2));
}

#[tokio::test]
async fn a_server_that_never_shakes_hands_is_given_up() {
    let pki = Pki::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("localhost:{}", listener.local_addr().unwrap().port());
    let timeouts = Timeouts {
        handshake: SHORT,
        ..PATIENT
    };
    let error = client_with(&endpoint, pki.device("pi-01"), timeouts)
        .publish("{}")
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            PublishError::TimedOut {
                phase: Phase::Handshake,
                after: SHORT
            }
        ),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_server_that_hangs_up_in_the_handshake_is_told_from_one_not_trusted() {
    let pki = Pki::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("localhost:{}", listener.local_addr().unwrap().port());
    let server = std::thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        // read first: a close over unread bytes would be a reset
        assert!(socket.read(&mut [0; 4096]).unwrap() > 0);
    });
    let error = client_with(&endpoint, pki.device("pi-01"), PATIENT)
        .publish("{}")
        .await
        .unwrap_err();
    assert!(matches!(error, PublishError::Closed { .. }), "{error:?}");
    server.join().unwrap();
}

#[tokio::test]
async fn a_port_without_a_listener_is_unreachable() {
    let pki = Pki::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("localhost:{}", listener.local_addr().unwrap().port());
    drop(listener);
    let error = client_with(&endpoint, pki.device("pi-01"), PATIENT)
        .publish("{}")
        .await
        .unwrap_err();
    assert!(
        matches!(error, PublishError::Unreachable { .. }),
        "{error:?}"
    );
    assert!(error.to_string().contains(&endpoint), "{error}");
}

#[tokio::test]
async fn a_server_of_another_authority_or_name_is_not_trusted() {
    let pki = Pki::new();
    let server = Server::start(Pki::new().server(ALL_VERSIONS), |_, _| Act::Reply(200));
    let error = client(&server, pki.device("pi-01"))
        .publish("{}")
        .await
        .unwrap_err();
    assert!(matches!(error, PublishError::Untrusted { .. }), "{error:?}");

    let server = Server::start(pki.server(ALL_VERSIONS), |_, _| Act::Reply(200));
    let endpoint = server.endpoint().replace("localhost", "127.0.0.1");
    let error = client_with(&endpoint, pki.device("pi-01"), PATIENT)
        .publish("{}")
        .await
        .unwrap_err();
    assert!(matches!(error, PublishError::Untrusted { .. }), "{error:?}");
    assert_eq!(server.rest().len(), 0);
}

#[tokio::test]
async fn a_refused_certificate_is_told_from_other_failures() {
    let pki = Pki::new();
    let server = Server::start(pki.server(&[&TLS12]), |_, _| Act::Reply(200));
    // of another authority of the same name, of one unheard of, and none
    for tls in [
        Pki::new().device("pi-01"),
        pki.server_as_client(),
        pki.nobody(),
    ] {
        // trusts the server, but shows it nothing it knows
        let mut stranger = pki.nobody();
        stranger.client_auth_cert_resolver = tls.client_auth_cert_resolver;
        let error = client(&server, stranger).publish("{}").await.unwrap_err();
        assert!(
            matches!(error, PublishError::CertificateRefused { .. }),
            "{error:?}"
        );
    }
    // In TLS 1.3 the client is done before the server has looked at its
    // certificate, and the alert can be lost to the reset that follows it.
    let server = Server::start(pki.server(&[&TLS13]), |_, _| Act::Reply(200));
    let error = client(&server, pki.nobody())
        .publish("{}")
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            PublishError::CertificateRefused { .. } | PublishError::Closed { .. }
        ),
        "{error:?}"
    );
    assert!(error.to_string().contains("certificate"), "{error}");
    assert_eq!(server.rest().len(), 0);
}

#[tokio::test]
async fn a_protocol_that_the_caller_names_is_offered() {
    let pki = Pki::new();
    let mut tls = pki.server(ALL_VERSIONS);
    tls.alpn_protocols = vec![b"http/1.1".to_vec(), b"x-amzn-http-ca".to_vec()];
    let server = Server::start(tls, |_, _| Act::Reply(200));
    let mut tls = pki.device("pi-01");
    tls.alpn_protocols = vec![b"x-amzn-http-ca".to_vec()];
    client(&server, tls).publish("{}").await.unwrap();
    assert_eq!(server.next().alpn.as_deref(), Some(&b"x-amzn-http-ca"[..]));
}

#[tokio::test]
async fn a_head_without_end_is_not_read_to_it() {
    let pki = Pki::new();
    let long: &'static str = "x".repeat(1024 * 1024).leak();
    let server = Server::start(pki.server(ALL_VERSIONS), move |_, _| {
        Act::ReplyWith(200, ("x-long", long), Vec::new())
    });
    let error = client(&server, pki.device("pi-01"))
        .publish("{}")
        .await
        .unwrap_err();
    assert!(matches!(error, PublishError::Protocol { .. }), "{error:?}");
}

#[tokio::test]
async fn what_is_not_http_is_named_as_such() {
    let pki = Pki::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("localhost:{}", listener.local_addr().unwrap().port());
    let config = Arc::new(pki.server(ALL_VERSIONS));
    let server = std::thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        let mut connection = rustls::ServerConnection::new(config).unwrap();
        let mut stream = rustls::Stream::new(&mut connection, &mut socket);
        stream.read_exact(&mut [0; 1]).unwrap();
        stream.write_all(b"220 mail.example ESMTP\r\n").unwrap();
        // until the client hangs up
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let mut client = client_with(&endpoint, pki.device("pi-01"), PATIENT);
    let error = client.publish("{}").await.unwrap_err();
    assert!(matches!(error, PublishError::Protocol { .. }), "{error:?}");
    drop(client);
    server.join().unwrap();
}
