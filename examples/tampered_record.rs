//! What a receiver says to records that are not as the device made them: one
//! verdict for each, with a stable reason.
//!
//! ```sh
//! cargo run -p zk-examples --bin tampered_record
//! ```

use std::path::Path;

use anyhow::{Context as _, Result};
use zk_envelope::{
    BootId, ClockQuality, Content, DeviceId, Entry, KeyState, Message, Moment, OwnerKey, Sealer,
    StreamId, TrustedKey,
};
use zk_hsm::{Hsm, Options, create_soft_key};
use zk_verify::{Context, DeviceRecord, check, principal_of, topic_of};

fn main() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let device_key = open(&directory.path().join("pi-01.pem"))?;
    let other_key = open(&directory.path().join("other.pem"))?;
    let pi_01 = DeviceId::try_from("pi-01")?;

    // What a receiver has registered for the certificate that the TLS client
    // showed; `None` for a certificate that it does not know. zk-store keeps
    // these in a table.
    let registered = DeviceRecord {
        device: pi_01.clone(),
        certificate: KeyState::Active,
        keys: vec![TrustedKey {
            key: *device_key.public_key(),
            state: KeyState::Active,
        }],
        registered_at: "2026-11-01T08:00:00.000Z".parse()?,
    };
    // What the transport knows of a message, and its sender could not choose.
    let context = Context {
        principal: principal_of(b"the DER of that certificate"),
        topic: topic_of(&pi_01),
        received_at: "2026-11-23T11:20:45.001Z".parse()?,
    };
    let verdict = |what: &str, json: &[u8], device: Option<&DeviceRecord>| {
        for verdict in check(json, &context, device) {
            // Evidence holds the message, too: a store keeps it, and can check
            // it again once the cause is mended.
            let verdict = verdict.map_or_else(|evidence| evidence.reason.as_str(), |_| "accepted");
            println!("{what:<36} {verdict}");
        }
    };

    let message = record(&pi_01, &device_key)?;
    let json = message.to_json()?;
    verdict("as the device made it", &json, Some(&registered));

    let mut flipped = message.clone();
    let entry = flipped.entries.first_mut().context("one record")?;
    // A bit of the tag. Everything is under the signature; a bit of the header
    // may break the format first, and is `malformed` then.
    *entry.encrypted_data.last_mut().context("its bytes")? ^= 1;
    verdict("one bit flipped", &flipped.to_json()?, Some(&registered));

    let mut renamed = message.clone();
    renamed.device_id = "pi-02".to_owned();
    let renamed = renamed.to_json()?;
    verdict("another device id outside", &renamed, Some(&registered));

    let forged = record(&pi_01, &other_key)?.to_json()?;
    verdict("signed by another key", &forged, Some(&registered));

    let mut pi_02 = registered.clone();
    pi_02.device = "pi-02".parse()?;
    verdict("under another device's certificate", &json, Some(&pi_02));
    verdict("under an unregistered certificate", &json, None);

    let mut revoked = registered.clone();
    let at = context.received_at;
    revoked.certificate = KeyState::Revoked { at };
    verdict("after the certificate was revoked", &json, Some(&revoked));

    verdict("cut short", &json[..json.len() - 1], Some(&registered));
    Ok(())
}

fn open(key: &Path) -> Result<Hsm> {
    Ok(Hsm::open(&create_soft_key(key)?, Options::default())?)
}

/// A record of `device`, signed by `key`. For real clocks see `seal_and_open`.
fn record(device: &DeviceId, key: &Hsm) -> Result<Message> {
    let owner = OwnerKey::generate()?;
    let owners = [owner.public_key().clone()];
    let mut sealer = Sealer::new(device.clone(), StreamId([7; 16]), key.public_key(), &owners)?;
    let moment = Moment {
        boot: BootId([3; 16]),
        since_boot_ms: 81_000,
        time: "2026-11-23T11:20:44.123Z".parse()?,
        clock: ClockQuality::Synchronised,
    };
    let content = Content::Data {
        content_type: "text/plain",
        body: b"21.437 degrees",
    };
    let envelope = sealer.seal(key, &moment, 1, content)?;
    Ok(Message {
        device_id: device.to_string(),
        entries: vec![Entry::from(&envelope)],
    })
}
