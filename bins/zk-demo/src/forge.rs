//! What somebody else might try, by the same HTTPS that devices use.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use rustls::{ClientConfig, RootCertStore};
use zk_envelope::{
    BootId, ClockQuality, Content, DeviceId, Entry, Message, Moment, OwnerPublicKey, Sealer,
    StreamId, Timestamp,
};
use zk_hsm::Hsm;
use zk_provision::Certificate;
use zk_publish::{Client, Delivered, PublishError, Target, Timeouts};

/// A party with a key and a certificate, honest or not.
pub(crate) struct Party {
    pub(crate) hsm: Hsm,
    tls: Arc<ClientConfig>,
}

impl Party {
    pub(crate) fn new(hsm: Hsm, certificate: &Certificate, roots: RootCertStore) -> Result<Self> {
        let chain = vec![certificate.der().to_vec().into()];
        let tls = hsm.client_config(chain, roots, &[])?;
        Ok(Self { hsm, tls })
    }

    /// Publishes `message` in the name of `device`.
    pub(crate) async fn publish(
        &self,
        gateway: SocketAddr,
        device: &DeviceId,
        message: Vec<u8>,
    ) -> Result<Result<Delivered, PublishError>> {
        let endpoint = format!("localhost:{}", gateway.port());
        let target = Target::new(&endpoint, &format!("Zymkey/{device}"))?;
        let mut client = Client::new(target, Arc::clone(&self.tls), Timeouts::default());
        Ok(client.publish(message).await)
    }
}

/// A message with one record of `device`, rightly encrypted and signed by
/// `signer`, on a stream of its own.
pub(crate) fn record(device: &DeviceId, signer: &Hsm, owner: &OwnerPublicKey) -> Result<Message> {
    let mut stream = StreamId([0; 16]);
    stream.0.copy_from_slice(&signer.random(16)?);
    let mut sealer = Sealer::new(
        device.clone(),
        stream,
        signer.public_key(),
        std::slice::from_ref(owner),
    )?;
    let moment = Moment {
        boot: BootId([0; 16]),
        since_boot_ms: 0,
        time: Timestamp::from(std::time::SystemTime::now()),
        clock: ClockQuality::Unknown,
    };
    let content = Content::Data {
        content_type: "text/plain",
        body: b"forged",
    };
    let envelope = sealer.seal(signer, &moment, 1, content)?;
    Ok(Message {
        device_id: device.to_string(),
        entries: vec![Entry::from(&envelope)],
    })
}

/// The same message with one bit of its ciphertext turned over.
pub(crate) fn changed(message: &Message) -> Result<Vec<u8>> {
    let mut message = message.clone();
    let bytes = &mut message
        .entries
        .first_mut()
        .context("a message has an entry")?
        .encrypted_data;
    // The last bytes are the tag; before them lies ciphertext.
    let at = bytes
        .len()
        .checked_sub(33)
        .context("a record has a ciphertext")?;
    bytes[at] ^= 1;
    Ok(message.to_json()?)
}
