//! Where forgeries end.

use zk_envelope::Opened;

use crate::world::World;

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_was_changed_ends_in_quarantine() {
    let world = World::new().await;
    let run = world
        .ctl(&["publish", "--forge", "signature", "--json"])
        .ends(0);
    let json = run.json();
    assert_eq!(json["answers"][0]["taken"], true);
    assert_eq!(json["expected"]["quarantine"], "bad-signature");
    run.says(&["zk-reader quarantine list"]);
    assert_eq!(world.quarantined().await, ["bad-signature"]);
    assert!(world.stored().await.is_empty());
    assert_eq!(
        world.gateway.counters().quarantined,
        [("bad-signature", 1)].into()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_of_another_device_ends_in_quarantine() {
    let world = World::new().await;
    let run = world
        .ctl(&["publish", "--forge", "device", "--json"])
        .ends(0);
    assert_eq!(run.json()["claimed"], "another-device");
    assert_eq!(run.json()["expected"]["quarantine"], "principal-mismatch");
    assert_eq!(world.quarantined().await, ["principal-mismatch"]);
    assert!(world.stored().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_is_stored_once_and_counted() {
    let world = World::new().await;
    let run = world
        .ctl_with(&["publish", "-", "--forge", "replay"], b"again")
        .ends(0);
    assert_eq!(run.text().matches("taken").count(), 2, "{}", run.text());
    assert!(run.text().contains("one duplicate"), "{}", run.text());
    assert!(world.quarantined().await.is_empty());
    let stored = world.stored().await;
    // the beginning of its stream, and itself
    assert_eq!(stored.len(), 2);
    assert_eq!(stored[1].body(), b"again");
    let counters = world.gateway.counters();
    assert_eq!((counters.stored, counters.duplicates), (2, 1));
}

/// Real data stays complete, whatever was forged in between.
#[tokio::test(flavor = "multi_thread")]
async fn forgeries_keep_away_from_the_stream_of_real_data() {
    let world = World::new().await;
    for (forgery, sequence) in [("signature", 2), ("device", 3), ("replay", 4)] {
        let real = world.ctl_with(&["publish", "--json"], b"real").ends(0);
        assert_eq!(real.json()["sequence"], sequence);
        let forged = world
            .ctl(&["publish", "--forge", forgery, "--json"])
            .ends(0);
        assert_ne!(real.json()["stream"], forged.json()["stream"]);
    }
    let stored = world.stored().await;
    let real = stored[0].header().stream;
    let own = stored.iter().map(Opened::header);
    let own: Vec<_> = own.filter(|header| header.stream == real).collect();
    assert_eq!(
        own.iter().map(|h| h.sequence).collect::<Vec<_>>(),
        [1, 2, 3, 4]
    );
    assert!(world.audits_clean().await);
    // beside it only the record that was replayed, and where its stream begins
    assert_eq!(stored.len(), 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_registration_not_even_a_forgery_gets_in() {
    let world = World::unregistered().await;
    let run = world.ctl(&["publish", "--forge", "signature"]).ends(5);
    assert!(run.text().contains("403"), "{}", run.text());
    assert!(world.quarantined().await.is_empty());
    let down = crate::world::closed_endpoint();
    let arguments = ["publish", "--forge", "replay", "--endpoint", &down];
    world
        .ctl(&arguments)
        .ends(1)
        .says(&["not kept", "cannot be reached"]);
    assert!(!world.path("zk-ctl-spool").exists());
}
