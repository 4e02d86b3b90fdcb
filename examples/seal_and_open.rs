//! A record sealed by a device for two owners, put into a spool, sent as JSON,
//! verified by anybody who knows the device's public key, opened by either owner
//! and by nobody else.
//!
//! ```sh
//! cargo run -p zk-examples --bin seal_and_open
//! ```

use std::fs;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use rustix::time::{ClockId, clock_gettime};
use zk_envelope::{
    BootId, ClockQuality, Content, DeviceId, Error, MAX_MESSAGE, Message, Moment, OwnerKey, Sealer,
    StreamId, Timestamp, pack,
};
use zk_hsm::{Hsm, create_soft_key};
use zk_spool::Spool;

fn main() -> Result<()> {
    // Owners' keys are made on the owners' machines and stay there; a device
    // only ever sees the public halves (`OwnerPublicKey::from_pem`).
    let (alice, bob) = (OwnerKey::generate()?, OwnerKey::generate()?);
    let owners = [alice.public_key().clone(), bob.public_key().clone()];

    let directory = tempfile::tempdir()?;
    let uri = create_soft_key(directory.path().join("key.pem"))?;
    let hsm = Hsm::open(&uri, zk_hsm::Options::default())?;

    // Stream and sequence number tell what belongs together and whether anything
    // is missing. Both are the spool's, which never gives a number out twice.
    let spool = Spool::open(directory.path().join("spool"), zk_spool::Options::default())?;
    let stream = StreamId(spool.stream().0);
    let device = DeviceId::try_from("pi-01")?;
    let mut sealer = Sealer::new(device, stream, hsm.public_key(), &owners)?;
    let moment = now()?;
    let content = Content::Data {
        content_type: "application/json",
        body: br#"{"celsius":21.437}"#,
    };
    spool.append_with(|sequence| {
        let envelope = sealer.seal(&hsm, &moment, sequence, content)?;
        Ok::<_, Error>(envelope.to_bytes())
    })?;

    // One message of as many waiting records as fit. zk-publish does this, and
    // acknowledges them when they are delivered.
    let (json, _taken) = pack(&spool.peek(64, MAX_MESSAGE)?, MAX_MESSAGE)?;
    println!("sent: {}\n", String::from_utf8_lossy(&json));

    // Elsewhere. The key comes from a registry or a trust file, never from the
    // message: `unverified_header` is good for finding it, and for nothing else.
    let device_key = hsm.public_key();
    let message = Message::parse(&json)?;
    let entry = message.entries.first().context("a message has an entry")?;
    let verified = entry.envelope()?.verify(device_key)?;
    let header = verified.header();
    println!(
        "verified: {} of {}, {}",
        header.sequence, header.device, header.time
    );

    for (name, owner) in [("alice", &alice), ("bob", &bob)] {
        // Only a `Verified` can be opened: the types keep the order.
        let opened = verified.open(owner)?;
        let body = String::from_utf8_lossy(opened.body());
        println!("{name} reads: {} {body}", opened.content_type());
    }
    match verified.open(&OwnerKey::generate()?) {
        Err(error @ Error::NotARecipient { .. }) => println!("a stranger reads nothing: {error}"),
        Err(error) => return Err(error.into()),
        Ok(_) => bail!("a stranger must not be able to open it"),
    }
    Ok(())
}

/// All the clocks that a device has: the wall clock may be wrong or be set, the
/// time since boot never is.
fn now() -> Result<Moment> {
    let since_boot = Duration::try_from(clock_gettime(ClockId::Boottime))?;
    Ok(Moment {
        boot: BootId::from_uuid(&fs::read_to_string("/proc/sys/kernel/random/boot_id")?)?,
        since_boot_ms: since_boot.as_millis().try_into()?,
        time: Timestamp::from(SystemTime::now()),
        // Say `Synchronised` only when you know it.
        clock: ClockQuality::FreeRunning,
    })
}
