//! Following: what comes in is shown once, whatever time it is signed with.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod support;

use std::time::Duration;

use support::{Device, World, at, noon};
use zk_envelope::{ClockQuality, StreamId, Timestamp};
use zk_reader::{Follow, Following, Reach};

const MINUTE: u64 = 60_000;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

fn following(from: Option<Timestamp>) -> Following {
    Following {
        from,
        late: Duration::from_hours(24),
        remember: 100_000,
    }
}

/// Stream and number of what is new.
async fn news(follow: &mut Follow<'_>, now: Timestamp, reach: Reach) -> Vec<(u8, u64)> {
    let mut news = follow.look(now, reach).await.unwrap();
    let mut found = Vec::new();
    while let Some(record) = news.next().await {
        let record = record.unwrap();
        assert!(record.is_fine());
        let header = record.header().unwrap();
        found.push((header.stream.0[0], header.sequence));
    }
    found
}

/// Delivers a reading of each of these times, in this order.
async fn deliver(world: &World, device: &mut Device, times: impl IntoIterator<Item = u64>) {
    for time in times {
        let record = device.reading(noon(time), 21_437);
        let received = noon(20 * DAY);
        assert_eq!(world.deliver(device, &record, received).await.stored, 1);
    }
}

/// Another spool of the same device.
fn other_stream(world: &World, device: &mut Device, stream: u8) {
    device.reseal(std::slice::from_ref(&world.owner), StreamId([stream; 16]));
    device.sequence = 0;
}

#[tokio::test]
async fn begins_now_or_where_it_is_told_to() {
    let mut world = World::new().await;
    let mut device = world.device("pi-01").await;
    deliver(&world, &mut device, [0, MINUTE, 2 * MINUTE]).await;
    let reader = world.reader();
    let now = noon(HOUR);

    let mut follow = reader.follow(&device.id, following(None));
    assert_eq!(news(&mut follow, now, Reach::Recent).await, []);
    let mut from = reader.follow(&device.id, following(Some(noon(MINUTE))));
    assert_eq!(news(&mut from, now, Reach::Recent).await, [(7, 2), (7, 3)]);
    let all = following(Some(at("1970-01-01T00:00:00.000Z")));
    let mut all = reader.follow(&device.id, all);
    assert_eq!(news(&mut all, now, Reach::Recent).await.len(), 3);

    deliver(&world, &mut device, [3 * MINUTE, 4 * MINUTE]).await;
    for follow in [&mut follow, &mut from, &mut all] {
        assert_eq!(news(follow, now, Reach::Recent).await, [(7, 4), (7, 5)]);
        assert_eq!(news(follow, now, Reach::Recent).await, []);
        assert_eq!(news(follow, now, Reach::All).await, []);
    }
}

#[tokio::test]
async fn a_drain_after_an_outage_is_seen_at_once() {
    let mut world = World::new().await;
    let mut device = world.device("pi-01").await;
    deliver(&world, &mut device, [0, MINUTE]).await;
    let reader = world.reader();
    // Ten days later, ten times as long as late records are looked for.
    let now = noon(10 * DAY);
    let mut follow = reader.follow(&device.id, following(None));
    assert_eq!(news(&mut follow, now, Reach::All).await, []);
    for day in 0..10 {
        deliver(
            &world,
            &mut device,
            [day * DAY + HOUR, day * DAY + 2 * HOUR],
        )
        .await;
        let (first, second) = (3 + 2 * day, 4 + 2 * day);
        let reach = if day == 5 { Reach::All } else { Reach::Recent };
        let found = news(&mut follow, now, reach).await;
        assert_eq!(found, [(7, first), (7, second)]);
    }
    // A device of which nothing was heard before.
    let mut silent = world.device("pi-02").await;
    let reader = world.reader();
    let mut follow = reader.follow(&silent.id, following(None));
    assert_eq!(news(&mut follow, now, Reach::All).await, []);
    deliver(&world, &mut silent, [0, DAY]).await;
    assert_eq!(news(&mut follow, now, Reach::Recent).await.len(), 2);
}

#[tokio::test]
async fn a_drain_behind_newer_records_is_not_missed() {
    let mut world = World::new().await;
    let mut device = world.device("pi-01").await;
    deliver(&world, &mut device, [0]).await;
    let reader = world.reader();
    let now = noon(13 * HOUR);
    let mut follow = reader.follow(&device.id, following(None));
    assert_eq!(news(&mut follow, now, Reach::All).await, []);

    // Another stream goes on for twelve hours; then the first one comes in.
    other_stream(&world, &mut device, 8);
    deliver(&world, &mut device, (1..=12).map(|hour| hour * HOUR)).await;
    assert_eq!(news(&mut follow, now, Reach::Recent).await.len(), 12);
    other_stream(&world, &mut device, 7);
    device.sequence = 1;
    let mut expected = Vec::new();
    for hour in 0..12 {
        let times = [hour * HOUR + 10, hour * HOUR + 20];
        deliver(&world, &mut device, times).await;
        expected.extend([(7, 2 + 2 * hour), (7, 3 + 2 * hour)]);
    }
    let mut found = news(&mut follow, now, Reach::Recent).await;
    assert_eq!(found, [], "none of them is recent");
    // A look that is broken off is made up for.
    let mut broken = follow.look(now, Reach::All).await.unwrap();
    for _ in 0..5 {
        let record = broken.next().await.unwrap().unwrap();
        found.push((7, record.header().unwrap().sequence));
    }
    found.extend(news(&mut follow, now, Reach::All).await);
    assert_eq!(found, expected);
    assert_eq!(news(&mut follow, now, Reach::All).await, []);

    // A little late: by any look. Later than it was told to: by none.
    other_stream(&world, &mut device, 9);
    let late = [12 * HOUR - 9 * MINUTE, 11 * HOUR, 0];
    deliver(&world, &mut device, late).await;
    assert_eq!(news(&mut follow, now, Reach::Recent).await, [(9, 1)]);
    assert_eq!(
        news(&mut follow, noon(15 * HOUR), Reach::All).await,
        [(9, 3), (9, 2)],
        "the newest record is of 12 h, a day before it is long ago"
    );
    deliver(&world, &mut device, [25 * HOUR, HOUR - 1]).await;
    let later = noon(26 * HOUR);
    assert_eq!(news(&mut follow, later, Reach::Recent).await, [(9, 4)]);
    assert_eq!(news(&mut follow, later, Reach::All).await, []);
}

#[tokio::test]
async fn wrong_clocks_hide_nothing() {
    let mut world = World::new().await;
    let mut device = world.device("pi-01").await;
    deliver(&world, &mut device, [0]).await;
    let reader = world.reader();
    let now = noon(HOUR);
    let mut follow = reader.follow(&device.id, following(None));
    assert_eq!(news(&mut follow, now, Reach::All).await, []);

    // One year ahead, then right again.
    deliver(&world, &mut device, [365 * DAY, 2 * MINUTE, 3 * MINUTE]).await;
    let found = news(&mut follow, now, Reach::Recent).await;
    assert_eq!(found, [(7, 3), (7, 4), (7, 2)]);
    deliver(&world, &mut device, [4 * MINUTE]).await;
    assert_eq!(news(&mut follow, now, Reach::Recent).await, [(7, 5)]);

    // Not set at all.
    device.clock = ClockQuality::Unknown;
    let record = device.reading(at("1970-01-01T00:00:07.000Z"), 20_000);
    world.deliver(&device, &record, noon(HOUR)).await;
    assert_eq!(news(&mut follow, now, Reach::All).await, [(7, 6)]);
    assert_eq!(news(&mut follow, now, Reach::All).await, []);

    // The reader's own clock: three days ahead, three days behind.
    for now in [noon(3 * DAY), at("2026-11-20T12:00:00.000Z")] {
        let mut follow = reader.follow(&device.id, following(None));
        assert_eq!(news(&mut follow, now, Reach::All).await, []);
        let time = device.sequence * MINUTE;
        deliver(&world, &mut device, [time]).await;
        assert_eq!(news(&mut follow, now, Reach::Recent).await.len(), 1);
    }
}

#[tokio::test]
async fn memory_is_bounded_and_nothing_is_shown_twice() {
    let mut world = World::new().await;
    let mut device = world.device("pi-01").await;
    let reader = world.reader();
    let now = noon(HOUR);
    let tight = Following {
        remember: 20,
        ..following(None)
    };
    let mut follow = reader.follow(&device.id, tight);
    assert_eq!(news(&mut follow, now, Reach::All).await, []);
    deliver(&world, &mut device, (1..=30).map(|n| n * 1000)).await;
    assert_eq!(follow.shortened(), None);
    let found = news(&mut follow, now, Reach::All).await;
    assert_eq!(found, (1..=30).map(|n| (7, n)).collect::<Vec<_>>());
    // It remembers ten of 1971 and later.
    let times = at("2026-11-23T12:00:20.001Z")..=Timestamp::MAX;
    assert_eq!(follow.shortened(), Some(times));
    assert_eq!(news(&mut follow, now, Reach::All).await, []);
    other_stream(&world, &mut device, 8);
    deliver(&world, &mut device, [10_000, 25_000]).await;
    assert_eq!(news(&mut follow, now, Reach::All).await, [(8, 2)]);
    assert_eq!(news(&mut follow, now, Reach::All).await, []);
}

#[tokio::test]
async fn a_clock_far_ahead_hides_nothing_of_today() {
    let mut world = World::new().await;
    let mut device = world.device("pi-01").await;
    let reader = world.reader();
    let now = noon(HOUR);
    let tight = Following {
        remember: 20,
        ..following(None)
    };
    let mut follow = reader.follow(&device.id, tight);
    assert_eq!(news(&mut follow, now, Reach::All).await, []);
    // More of next year than are remembered; then the clock is right again.
    let ahead = |n| 365 * DAY + n * MINUTE;
    deliver(&world, &mut device, (1..=15).map(ahead)).await;
    assert_eq!(news(&mut follow, now, Reach::All).await.len(), 15);
    let times = follow.shortened().unwrap();
    assert!(times.contains(&now) && !times.contains(&noon(ahead(15))));
    for n in 16..=30 {
        deliver(&world, &mut device, [n * 1000]).await;
        let reach = if n % 2 == 0 {
            Reach::Recent
        } else {
            Reach::All
        };
        assert_eq!(news(&mut follow, now, reach).await, [(7, n)]);
    }
    assert_eq!(news(&mut follow, now, Reach::All).await, []);

    // When next year has come it is looked for there again.
    deliver(&world, &mut device, [ahead(16)]).await;
    let found = news(&mut follow, noon(ahead(20)), Reach::Recent).await;
    assert!(found.contains(&(7, 31)), "{found:?}");
}

#[tokio::test]
async fn damaged_items_are_shown_once() {
    let mut world = World::new().await;
    let mut device = world.device("pi-01").await;
    deliver(&world, &mut device, [0, 1000]).await;
    let reader = world.reader();
    let key = reader
        .records(&device.id, zk_reader::all_times())
        .next()
        .await
        .unwrap()
        .unwrap()
        .key;
    let mut follow = reader.follow(&device.id, following(None));
    assert_eq!(news(&mut follow, noon(HOUR), Reach::All).await, []);
    // Keys without a time, between those that have one.
    for name in ["2026-11-23T12:00:00.5 and so on", "2026-12"] {
        support::tamper(world.dir.path(), "pi-01", &key, |item| {
            item["timestamp"]["S"] = name.into();
        });
    }
    let mut found = Vec::new();
    for _ in 0..3 {
        let mut news = follow.look(noon(HOUR), Reach::All).await.unwrap();
        while let Some(record) = news.next().await {
            found.push(record.unwrap().key);
        }
    }
    assert_eq!(found, ["2026-11-23T12:00:00.5 and so on", "2026-12"]);
}
