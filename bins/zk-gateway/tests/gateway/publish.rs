//! What is stored, what is not, and who is let in.

use std::sync::Arc;
use std::time::Duration;

use crate::world::{Device, World, connect, post, start, uri};
use rcgen::{ExtendedKeyUsagePurpose, date_time_ymd};
use rustls::version::{TLS12, TLS13};
use zk_envelope::{KeyState, Timestamp};
use zk_gateway::{Limits, Tls};
use zk_publish::{Client, PublishError, Target, Timeouts};
use zk_store::{Options, Store};

#[tokio::test]
async fn a_registered_device_is_answered_as_aws_iot_does_once_its_record_is_stored() {
    let world = World::new().await;
    let running = world.start().await;
    let mut device = world.device("pi-01").await;
    let message = device.message([1]);
    let mut conversation = running.connect(&device.tls).await;
    let answer = conversation.ask(&device.post(&message)).await;

    assert_eq!(answer.line, "HTTP/1.1 200 OK");
    assert_eq!(answer.headers["content-type"], "application/json");
    let id = answer.member("traceId");
    assert_eq!(
        answer.body,
        format!(r#"{{"message":"OK","traceId":"{id}"}}"#)
    );
    assert_eq!(answer.headers["x-amzn-requestid"], id);
    assert_eq!(id.len(), 36);
    assert_eq!(answer.headers.get("x-amzn-errortype"), None);
    assert_eq!(world.stored(&device).await.len(), 1);

    let counters = running.gateway.counters();
    assert_eq!(counters.answers, [(200, 1)].into());
    assert_eq!((counters.stored, counters.duplicates), (1, 0));
    assert_eq!(counters.bytes, message.len() as u64);
    assert!(counters.quarantined.is_empty());
}

#[tokio::test]
async fn what_comes_again_is_stored_once_and_counted() {
    let world = World::new().await;
    let running = world.start().await;
    let mut device = world.device("pi-01").await;
    let message = device.message([1]);
    let mut conversation = running.connect(&device.tls).await;
    for _ in 0..3 {
        assert_eq!(conversation.ask(&device.post(&message)).await.status, 200);
    }
    assert_eq!(world.stored(&device).await.len(), 1);
    let counters = running.gateway.counters();
    assert_eq!((counters.stored, counters.duplicates), (1, 2));
}

#[tokio::test]
async fn a_bad_record_is_quarantined_and_does_not_spoil_its_batch() {
    let world = World::new().await;
    let running = world.start().await;
    let mut device = world.device("pi-01").await;
    let mut records: Vec<_> = (1..=3).map(|n| device.record_of(n)).collect();
    *records[1].last_mut().unwrap() ^= 1;
    let (message, _) = zk_envelope::pack(&records, 100_000).unwrap();
    let mut conversation = running.connect(&device.tls).await;
    assert_eq!(conversation.ask(&device.post(&message)).await.status, 200);

    assert_eq!(world.stored(&device).await.len(), 2);
    assert_eq!(world.quarantined().await, ["bad-signature"]);
    let counters = running.gateway.counters();
    assert_eq!(counters.stored, 2);
    assert_eq!(counters.quarantined, [("bad-signature", 1)].into());
}

#[tokio::test]
async fn what_is_not_the_devices_own_is_answered_and_quarantined() {
    let world = World::new().await;
    let running = world.start().await;
    let mut pi_01 = world.device("pi-01").await;
    let mut pi_02 = world.device("pi-02").await;
    let mut conversation = running.connect(&pi_02.tls).await;
    let stolen = pi_01.message([1]);
    let own = pi_02.message([1]);
    for (target, message) in [
        ("/topics/Zymkey%2Fpi-02?qos=1", &stolen[..]),
        ("/topics/Zymkey%2Fpi-01?qos=1", &own[..]),
        ("/topics/Zymkey%2Fpi-02?qos=1", b"no message"),
        ("/topics/Zymkey%2Fpi-02?qos=1", b""),
    ] {
        assert_eq!(conversation.ask(&post(target, message)).await.status, 200);
    }
    let expected = [
        "malformed",
        "malformed",
        "principal-mismatch",
        "topic-mismatch",
    ];
    assert_eq!(world.quarantined().await, expected);
    assert!(world.stored(&pi_01).await.is_empty() && world.stored(&pi_02).await.is_empty());
}

#[tokio::test]
async fn an_unregistered_certificate_is_forbidden_and_leaves_nothing_behind() {
    let world = World::new().await;
    let running = world.start().await;
    let mut stranger = world.stranger("pi-99");
    let message = stranger.message([1]);
    let mut conversation = running.connect(&stranger.tls).await;
    let answer = conversation.ask(&stranger.post(&message)).await;

    assert_eq!(answer.status, 403);
    assert_eq!(answer.headers["x-amzn-errortype"], "ForbiddenException");
    assert_eq!(answer.headers["x-amzn-requestid"], answer.member("traceId"));
    assert!(
        answer.member("message").contains("not registered"),
        "{answer:?}"
    );
    assert!(world.stored(&stranger).await.is_empty());
    assert!(world.quarantined().await.is_empty());
    let counters = running.gateway.counters();
    assert_eq!(counters.answers, [(403, 1)].into());
    assert_eq!(counters.bytes, 0);

    // The connection lives on, and so does its certificate once registered.
    world
        .store
        .register(&stranger.principal, &stranger.record())
        .await
        .unwrap();
    until_admitted(&mut conversation, &stranger, &message).await;
    assert_eq!(world.stored(&stranger).await.len(), 1);
}

#[tokio::test]
async fn who_is_forbidden_need_not_send_the_body() {
    let world = World::new().await;
    let running = world.start().await;
    let stranger = world.stranger("pi-99");
    let mut conversation = running.connect(&stranger.tls).await;
    let head = "POST /topics/Zymkey%2Fpi-99?qos=1 HTTP/1.1\r\nhost: localhost\r\n\
                content-length: 5000\r\nexpect: 100-continue\r\n\r\n";
    assert_eq!(conversation.ask(head.as_bytes()).await.status, 403);
}

#[tokio::test]
async fn a_revocation_by_another_process_stops_an_open_connection() {
    let world = World::new().await;
    let mut device = world.device("pi-01").await;
    let options = Options {
        registry_age: Duration::ZERO,
        registry_refresh: Duration::ZERO,
        ..Options::default()
    };
    let store = Store::open(&uri(world.directory.path()), options)
        .await
        .unwrap();
    let running = start(store, Tls::load(&world.files()).unwrap(), Limits::default()).await;
    let mut conversation = running.connect(&device.tls).await;
    let message = device.message([1]);
    assert_eq!(conversation.ask(&device.post(&message)).await.status, 200);

    let at = Timestamp::from(std::time::SystemTime::now());
    let revoke =
        |record: &mut zk_verify::DeviceRecord| record.certificate = KeyState::Revoked { at };
    world
        .store
        .update_device(&device.principal, revoke)
        .await
        .unwrap();
    let message = device.message([2]);
    assert_eq!(conversation.ask(&device.post(&message)).await.status, 403);
    assert_eq!(world.stored(&device).await.len(), 1);
    assert!(world.quarantined().await.is_empty());
}

#[tokio::test]
async fn only_certificates_of_the_device_ca_pass_the_handshake() {
    let world = World::new().await;
    let running = world.start().await;
    let expired = world.device_with("pi-01", |params| {
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2021, 1, 1);
    });
    let not_yet = world.device_with("pi-01", |params| {
        params.not_before = date_time_ymd(4000, 1, 1);
        params.not_after = date_time_ymd(4001, 1, 1);
    });
    let for_servers = world.device_with("pi-01", |params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    });
    let refused = [
        world.nobody(),
        world.foreigner("pi-01").tls,
        world.server_as_client().tls,
        expired.tls,
        not_yet.tls,
        for_servers.tls,
    ];
    for (number, tls) in refused.iter().enumerate() {
        // in TLS 1.3 the client learns of it only when it reads
        if let Ok(mut conversation) = running.try_connect(tls).await {
            assert!(conversation.try_answer().await.is_none());
        }
        let counters = running.gateway.counters();
        assert_eq!(
            counters.handshakes_failed,
            [("certificate", number as u64 + 1)].into()
        );
        assert_eq!(counters.connections, 0);
    }
}

#[tokio::test]
async fn tls_1_2_and_1_3_are_spoken_with_the_protocols_that_clients_offer() {
    let world = World::new().await;
    let running = world.start().await;
    let mut device = world.device("pi-01").await;
    let message = device.message([1]);
    for version in [&TLS12, &TLS13] {
        for alpn in [
            &[][..],
            &["x-amzn-http-ca"],
            &["http/1.1"],
            &["h2", "http/1.1"],
            &["http/1.0"],
        ] {
            let mut tls = rustls::ClientConfig::builder_with_protocol_versions(&[version])
                .with_root_certificates(world.server_roots())
                .with_client_cert_resolver(Arc::clone(&device.tls.client_auth_cert_resolver));
            tls.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
            let mut conversation = running.connect(&tls).await;
            assert_eq!(conversation.ask(&device.post(&message)).await.status, 200);
            let session = conversation.stream.get_ref().1;
            assert_eq!(session.protocol_version(), Some(version.version));
            assert_eq!(
                session.alpn_protocol().map(<[u8]>::to_vec),
                tls.alpn_protocols.pop()
            );
        }
    }
    let mut tls = device.tls.clone();
    tls.alpn_protocols = vec![b"h2".to_vec()];
    assert!(running.try_connect(&tls).await.is_err());
}

#[tokio::test]
async fn a_session_is_resumed_and_still_the_same_device() {
    let world = World::new().await;
    let running = world.start().await;
    let mut device = world.device("pi-01").await;
    let message = device.message([1]);
    for version in [&TLS12, &TLS13] {
        let tls = rustls::ClientConfig::builder_with_protocol_versions(&[version])
            .with_root_certificates(world.server_roots())
            .with_client_cert_resolver(Arc::clone(&device.tls.client_auth_cert_resolver));
        let tls = Arc::new(tls);
        let before = running.gateway.counters().resumed;
        for number in 0..3 {
            let mut conversation = connect(running.address, Arc::clone(&tls)).await.unwrap();
            assert_eq!(conversation.ask(&device.post(&message)).await.status, 200);
            assert_eq!(running.gateway.counters().resumed, before + number);
        }
    }
    assert_eq!(running.gateway.counters().duplicates, 5);
}

#[tokio::test]
async fn other_certificates_are_used_without_a_restart() {
    let world = World::new().await;
    let running = world.start().await;
    let device = world.device("pi-01").await;
    let shown = async || {
        let conversation = running.connect(&device.tls).await;
        conversation.stream.get_ref().1.peer_certificates().unwrap()[0]
            .clone()
            .into_owned()
    };
    let before = shown().await;
    let renewed = world.renew_certificate();
    assert_eq!(shown().await, before);
    running.gateway.set_tls(Tls::load(&world.files()).unwrap());
    assert_eq!(shown().await, renewed);
    assert_ne!(renewed, before);
}

#[tokio::test]
async fn a_store_that_fails_is_no_delivery() {
    let world = World::new().await;
    let running = world.start().await;
    let mut device = world.device("pi-01").await;
    let mut conversation = running.connect(&device.tls).await;
    let message = device.message([1]);
    world.store.delete_tables().await.unwrap();
    let answer = conversation.ask(&device.post(&message)).await;

    assert_eq!(answer.status, 503);
    assert_eq!(answer.headers["retry-after"], "1");
    assert_eq!(
        answer.headers["x-amzn-errortype"],
        "ServiceUnavailableException"
    );
    let counters = running.gateway.counters();
    assert_eq!((counters.store_failures, counters.store_failing), (1, true));

    Store::create(&uri(world.directory.path()), Options::default())
        .await
        .unwrap();
    world
        .store
        .register(&device.principal, &device.record())
        .await
        .unwrap();
    until_admitted(&mut conversation, &device, &message).await;
    assert!(!running.gateway.counters().store_failing);
    assert_eq!(world.stored(&device).await.len(), 1);
}

/// A device that is known from memory says nothing of the store's health.
#[tokio::test]
async fn an_outage_lasts_until_the_store_takes_a_message() {
    let world = World::new().await;
    let running = world.start().await;
    let mut device = world.device("pi-01").await;
    let mut conversation = running.connect(&device.tls).await;
    let first = device.message([1]);
    assert_eq!(conversation.ask(&device.post(&first)).await.status, 200);

    world.store.delete_tables().await.unwrap();
    let second = device.message([2]);
    assert_eq!(conversation.ask(&device.post(&second)).await.status, 503);
    let head = format!(
        "POST /topics/Zymkey%2Fpi-01?qos=1 HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\
         expect: 100-continue\r\n\r\n",
        second.len()
    );
    // it was let in: its certificate is remembered
    let line = conversation.ask(head.as_bytes()).await.line;
    assert_eq!(line, "HTTP/1.1 100 Continue");
    assert!(running.gateway.counters().store_failing);

    Store::create(&uri(world.directory.path()), Options::default())
        .await
        .unwrap();
    assert_eq!(conversation.ask(&second).await.status, 200);
    assert!(!running.gateway.counters().store_failing);
    assert_eq!(world.stored(&device).await.len(), 1);
}

#[tokio::test]
async fn the_publisher_understands_the_gateway() {
    let world = World::new().await;
    let running = world.start().await;
    let mut device = world.device("pi-01").await;
    let endpoint = format!("localhost:{}", running.address.port());
    let client = |device: &Device| {
        let target = Target::new(&endpoint, &format!("Zymkey/{}", device.name)).unwrap();
        Client::new(target, Arc::new(device.tls.clone()), Timeouts::default())
    };
    let mut own = client(&device);
    for sequence in 1..=3 {
        let delivered = own.publish(device.message([sequence])).await.unwrap();
        assert_eq!(delivered.trace_id.map(|id| id.len()), Some(36));
    }
    assert_eq!(own.connections(), 1);
    assert_eq!(world.stored(&device).await.len(), 3);

    let error = own.publish(vec![b' '; 200_000]).await.unwrap_err();
    assert!(matches!(error, PublishError::Refused { .. }), "{error:?}");

    let mut stranger = world.stranger("pi-99");
    let error = client(&stranger)
        .publish(stranger.message([1]))
        .await
        .unwrap_err();
    assert!(matches!(error, PublishError::Forbidden { .. }), "{error:?}");

    let mut foreigner = world.foreigner("pi-01");
    let error = client(&foreigner)
        .publish(foreigner.message([1]))
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            PublishError::CertificateRefused { .. } | PublishError::Closed { .. }
        ),
        "{error:?}"
    );
}

/// The registry may be looked at once a second only, for one certificate.
async fn until_admitted(
    conversation: &mut crate::world::Conversation,
    device: &Device,
    message: &[u8],
) {
    let admitted = async {
        while conversation.ask(&device.post(message)).await.status != 200 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(crate::world::PATIENCE, admitted)
        .await
        .unwrap();
}
