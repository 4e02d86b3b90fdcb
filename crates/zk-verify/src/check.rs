//! The verdict on a message.

use sha2::{Digest, Sha256};
use zk_envelope::{
    DeviceId, Entry, Envelope, Error, KeyId, KeyState, MAX_MESSAGE, Message, Timestamp, TrustedKey,
    Verified, pack,
};

use crate::Reason;

/// How a message came in: what the transport knows of it, and the sender could
/// not choose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Context {
    /// Who sent it. For a device, [`principal_of`] its certificate; any other
    /// name that the transport gives is a principal that nobody registered.
    pub principal: String,
    /// The topic that it was published on.
    pub topic: String,
    /// When it was received.
    pub received_at: Timestamp,
}

/// What is registered for one principal: a device's certificate and keys.
///
/// A device whose certificate is replaced has a record for each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceRecord {
    /// The device.
    pub device: DeviceId,
    /// Whether this certificate still counts.
    pub certificate: KeyState,
    /// The device's signing keys.
    pub keys: Vec<TrustedKey>,
    /// When the certificate was registered.
    pub registered_at: Timestamp,
}

impl DeviceRecord {
    /// Whether the certificate may bring anything that is received at this
    /// instant.
    #[must_use]
    pub fn admits(&self, received_at: Timestamp) -> bool {
        counts(self.certificate, received_at)
    }
}

/// What is to be done with one envelope: store it, or put it aside.
pub type Verdict = Result<Accepted, Evidence>;

/// An envelope that the device made, sent, and published on its own topic.
#[derive(Clone, Debug)]
pub struct Accepted {
    /// The envelope, its signature verified.
    pub envelope: Verified,
    /// Its time is more than an hour ahead of its receipt.
    pub ahead: bool,
}

impl Accepted {
    /// The evidence, once a store finds other bytes in its place.
    #[must_use]
    pub fn conflict(&self) -> Evidence {
        let record = &self.envelope;
        let sealed = [record.encrypted_data(), record.signature()].concat();
        // A verified record packs, and alone it fits any message.
        let message = pack(&[sealed], usize::MAX)
            .map(|(message, _)| message)
            .unwrap_or_default();
        Evidence {
            reason: Reason::Conflict,
            authentic: true,
            message,
        }
    }
}

/// An envelope, or a whole message, that is not accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// Why.
    pub reason: Reason,
    /// Whether a key of the device that is not revoked made the signature:
    /// then the device, or who holds its key, has to explain it.
    pub authentic: bool,
    /// A message that [`check`] takes again, with the same verdict as long as
    /// nothing else has changed. An envelope out of a batch stands alone in
    /// it, so that it is the same however it was packed.
    pub message: Vec<u8>,
}

/// Decides on every envelope of a message: one verdict for each, in order, or a
/// single one for a message that is refused as a whole.
///
/// `device` is what is registered for `context.principal`. The work goes in this
/// order, and the first that fails is the reason:
///
/// | of the message | |
/// | --- | --- |
/// | at most [`MAX_MESSAGE`] bytes | `too-large` |
/// | the principal is registered | `unknown-device` |
/// | its certificate was not revoked when the message came in | `revoked-device` |
/// | well-formed JSON and hex | `malformed` |
///
/// | of each envelope | |
/// | --- | --- |
/// | well-formed | `malformed`, `too-large`, `unsupported-version` |
/// | the signed device id is the registered one | `principal-mismatch` |
/// | the signer is one of the device's keys | `signer-mismatch` |
/// | that key was not revoked when the message came in | `revoked-device` |
/// | the signature | `bad-signature` |
/// | device id and time outside are the signed ones | `header-mismatch` |
/// | the topic is [`topic_of`] the device | `topic-mismatch` |
#[must_use]
pub fn check(message: &[u8], context: &Context, device: Option<&DeviceRecord>) -> Vec<Verdict> {
    let whole = |reason| {
        let message = message[..message.len().min(MAX_MESSAGE + 1)].to_vec();
        vec![Err(Evidence {
            reason,
            authentic: false,
            message,
        })]
    };
    if message.len() > MAX_MESSAGE {
        return whole(Reason::TooLarge);
    }
    let Some(device) = device else {
        return whole(Reason::UnknownDevice);
    };
    if !device.admits(context.received_at) {
        return whole(Reason::RevokedDevice);
    }
    let parsed = match Message::parse(message) {
        Ok(parsed) => parsed,
        Err(error) => return whole(reason_of(&error)),
    };
    let Message { device_id, entries } = parsed;
    let judge = |entry: Entry| {
        check_entry(&device_id, &entry, context, device).map_err(|(reason, authentic)| Evidence {
            reason,
            authentic,
            message: single(&device_id, &entry),
        })
    };
    entries.into_iter().map(judge).collect()
}

/// Decides on an envelope that was accepted before, by what the one who asks
/// now knows of the device: what [`check`] does of an envelope up to its
/// signature.
///
/// # Errors
/// The reason: `principal-mismatch` for an envelope of another device,
/// `signer-mismatch`, `revoked-device`, `bad-signature`.
pub fn recheck(
    envelope: Envelope,
    received_at: Timestamp,
    device: &DeviceId,
    keys: &[TrustedKey],
) -> Result<Verified, Reason> {
    let header = envelope.unverified_header();
    if header.device != *device {
        return Err(Reason::PrincipalMismatch);
    }
    let signer = header.signer;
    let mut named = keys
        .iter()
        .filter(|known| KeyId::of(&known.key) == signer)
        .peekable();
    let known = *named.peek().ok_or(Reason::SignerMismatch)?;
    // A key that stands there twice is as bad as the worst that is said of it.
    if !named.all(|known| counts(known.state, received_at)) {
        return Err(Reason::RevokedDevice);
    }
    envelope
        .verify(&known.key)
        .map_err(|_| Reason::BadSignature)
}

/// The principal of a certificate: SHA-256 of its DER, in lower-case hex. AWS
/// IoT calls it the certificate id.
#[must_use]
pub fn principal_of(certificate_der: &[u8]) -> String {
    base16ct::lower::encode_string(&Sha256::digest(certificate_der))
}

/// The one topic that a device publishes on: `Zymkey/<device id>`.
#[must_use]
pub fn topic_of(device: &DeviceId) -> String {
    format!("Zymkey/{device}")
}

/// The accepted envelope, or the reason and whether the evidence is authentic.
fn check_entry(
    device_id: &str,
    entry: &Entry,
    context: &Context,
    device: &DeviceRecord,
) -> Result<Accepted, (Reason, bool)> {
    let envelope = entry
        .envelope()
        .map_err(|error| (reason_of(&error), false))?;
    let verified =
        recheck(envelope, context.received_at, &device.device, &device.keys).map_err(|reason| {
            (
                reason,
                reason == Reason::PrincipalMismatch && signed(entry, context, device),
            )
        })?;
    let header = verified.header();
    if device_id != header.device.as_str() || entry.timestamp != header.time.to_string() {
        return Err((Reason::HeaderMismatch, true));
    }
    if context.topic != topic_of(&device.device) {
        return Err((Reason::TopicMismatch, true));
    }
    let ahead = is_ahead(header.time, context.received_at);
    Ok(Accepted {
        envelope: verified,
        ahead,
    })
}

/// Whether an envelope that names another device was signed by this one's key.
fn signed(entry: &Entry, context: &Context, device: &DeviceRecord) -> bool {
    let Ok(envelope) = entry.envelope() else {
        return false;
    };
    let named = envelope.unverified_header().device.clone();
    recheck(envelope, context.received_at, &named, &device.keys).is_ok()
}

/// Whether a key or a certificate in this state counts for what is received at
/// this instant. A retired one does: its late records are right.
fn counts(state: KeyState, received_at: Timestamp) -> bool {
    match state {
        KeyState::Active | KeyState::Retired => true,
        KeyState::Revoked { at } => received_at < at,
    }
}

/// More than an hour: a clock that is wrong, not one that drifts.
pub(crate) fn is_ahead(time: Timestamp, received_at: Timestamp) -> bool {
    time.as_millis() > received_at.as_millis() + 3_600_000
}

fn reason_of(error: &Error) -> Reason {
    match error {
        Error::TooLarge { .. } => Reason::TooLarge,
        Error::UnsupportedVersion { .. } => Reason::UnsupportedVersion,
        _ => Reason::Malformed,
    }
}

/// The message of one entry, whatever its routing copies say.
fn single(device_id: &str, entry: &Entry) -> Vec<u8> {
    let message = Message {
        device_id: device_id.to_owned(),
        entries: vec![entry.clone()],
    };
    // What has one entry can be written.
    message.to_json().unwrap_or_default()
}
