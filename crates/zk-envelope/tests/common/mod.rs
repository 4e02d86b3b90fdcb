//! What the tests share: a device that seals.
#![allow(dead_code, unreachable_pub)]

use p256::ecdsa::SigningKey;
use p256::elliptic_curve::Generate;
use zk_envelope::{
    BootId, ClockQuality, Content, DeviceId, Envelope, Moment, OwnerKey, OwnerPublicKey, Sealer,
    StreamId, Timestamp,
};

pub struct Device {
    pub key: SigningKey,
    pub sealer: Sealer,
    sequence: u64,
}

impl Device {
    pub fn new(name: &str, owners: &[&OwnerKey]) -> Self {
        let key = SigningKey::generate();
        let owners: Vec<OwnerPublicKey> = owners.iter().map(|o| o.public_key().clone()).collect();
        let device = DeviceId::try_from(name).unwrap();
        let sealer =
            Sealer::new(device, StreamId([0x51; 16]), key.verifying_key(), &owners).unwrap();
        Self {
            key,
            sealer,
            sequence: 0,
        }
    }

    pub fn seal_at(&mut self, moment: &Moment, content: Content<'_>) -> Envelope {
        self.sequence += 1;
        self.sealer
            .seal(&self.key, moment, self.sequence, content)
            .unwrap()
    }

    pub fn seal(&mut self, body: &[u8]) -> Envelope {
        self.seal_at(
            &moment(81_000),
            Content::Data {
                content_type: "application/json",
                body,
            },
        )
    }
}

pub fn moment(since_boot_ms: u64) -> Moment {
    Moment {
        boot: BootId([0xb0; 16]),
        since_boot_ms,
        time: Timestamp::from_millis(1_795_432_844_123).unwrap(),
        clock: ClockQuality::Synchronised,
    }
}

/// The length of everything before the recipients, for a device name.
pub fn head_len(device: &str) -> usize {
    4 + 1 + 1 + 1 + device.len() + 16 + 8 + 16 + 8 + 8 + 1 + 32 + 1
}
