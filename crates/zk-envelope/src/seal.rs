//! Sealing: encrypt for the owners, then sign.

use std::fmt;

use p256::ecdsa::{Signature, VerifyingKey};
use signature::Signer;
use zeroize::Zeroizing;

use crate::Error;
use crate::crypto::{self, DataKey, MessageKeys};
use crate::envelope::{
    ClockQuality, Envelope, Header, Kind, MAX_ENCRYPTED_DATA, MAX_OWNERS, RECIPIENT_LEN,
    signature_fits, valid_content_type, write_head,
};
use crate::id::{BootId, DeviceId, KeyId, RecipientId, StreamId, Timestamp};
use crate::owner::OwnerPublicKey;
use crate::report::Report;

/// When a record is made, by all the clocks that the device has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// The boot during which it is made.
    pub boot: BootId,
    /// Milliseconds since that boot, by a clock that is never set.
    pub since_boot_ms: u64,
    /// The wall clock.
    pub time: Timestamp,
    /// What the device knows of its wall clock.
    pub clock: ClockQuality,
}

/// What a record says.
#[derive(Clone, Copy, Debug)]
pub enum Content<'a> {
    /// Kind 1: the application's own body, and its media type.
    Data {
        /// 1 to 255 bytes of printable ASCII, for example `application/json`.
        content_type: &'a str,
        /// Any bytes, up to about 64 kB.
        body: &'a [u8],
    },
    /// Kinds 2 to 5.
    Report(&'a Report),
}

/// Makes the records of one device, one stream and one signing key.
///
/// It holds the data key of the current epoch, in memory only. An epoch ends
/// after 24 hours of uptime and with every new `Sealer`; make a new one when
/// device, stream, signer or owners change.
pub struct Sealer {
    device: DeviceId,
    stream: StreamId,
    signer: VerifyingKey,
    signer_id: KeyId,
    owners: Vec<(RecipientId, OwnerPublicKey)>,
    epoch: Option<Epoch>,
}

struct Epoch {
    /// HKDF's extract of the data key, all that sealing needs of it.
    prk: Zeroizing<[u8; 32]>,
    wraps: Vec<[u8; RECIPIENT_LEN]>,
    boot: BootId,
    since_boot_ms: u64,
}

impl Sealer {
    /// `signer` is the public half of the key that will sign.
    ///
    /// # Errors
    /// [`Error::Malformed`] for no owners, more than 8, or two with the same
    /// identity.
    pub fn new(
        device: DeviceId,
        stream: StreamId,
        signer: &VerifyingKey,
        owners: &[OwnerPublicKey],
    ) -> Result<Self, Error> {
        if !(1..=MAX_OWNERS).contains(&owners.len()) {
            return Err(Error::malformed("owners", "1 to 8 of them"));
        }
        let mut owners: Vec<_> = owners
            .iter()
            .map(|owner| (owner.id(), owner.clone()))
            .collect();
        owners.sort_by_key(|(id, _)| *id);
        if owners.windows(2).any(|pair| pair[0].0 == pair[1].0) {
            return Err(Error::malformed("owners", "each of them once"));
        }
        Ok(Self {
            device,
            stream,
            signer: *signer,
            signer_id: KeyId::of(signer),
            owners,
            epoch: None,
        })
    }

    /// Encrypts `content` for the owners and lets `signer` sign it as number
    /// `sequence` of the stream. The signature is verified before the envelope
    /// is handed out.
    ///
    /// A record that `signer` fails to sign leaves nothing behind: seal again
    /// with the same sequence number.
    ///
    /// # Errors
    /// [`Error::Sign`] with the signer's own error as source;
    /// [`Error::SignerChanged`] if it holds another key; [`Error::TooLarge`];
    /// [`Error::Malformed`] for a sequence number of 0 or a content type
    /// outside printable ASCII; [`Error::Random`].
    pub fn seal(
        &mut self,
        signer: &dyn Signer<Signature>,
        moment: &Moment,
        sequence: u64,
        content: Content<'_>,
    ) -> Result<Envelope, Error> {
        if sequence == 0 {
            return Err(Error::malformed("sequence", "starts at 1"));
        }
        let (kind, plaintext) = plaintext(content)?;
        let header = Header {
            kind,
            device: self.device.clone(),
            stream: self.stream,
            sequence,
            boot: moment.boot,
            since_boot_ms: moment.since_boot_ms,
            time: moment.time,
            clock: moment.clock,
            signer: self.signer_id,
            recipients: self.owners.iter().map(|(id, _)| *id).collect(),
        };
        let mut iv = [0; 16];
        getrandom::fill(&mut iv)?;
        let epoch = self.epoch(moment)?;
        let mut bytes = write_head(&header, &epoch.wraps);
        let undecryptable = || Error::Undecryptable;
        let keys = MessageKeys::derive(&epoch.prk, &bytes).ok_or_else(undecryptable)?;
        let ciphertext = keys.encrypt(&iv, &plaintext);
        let size = bytes.len() + 16 + 4 + ciphertext.len() + 32;
        if size > MAX_ENCRYPTED_DATA {
            return Err(Error::TooLarge {
                what: "encryptedData",
                size,
                limit: MAX_ENCRYPTED_DATA,
            });
        }
        bytes.extend_from_slice(&iv);
        // At most MAX_ENCRYPTED_DATA, so it fits.
        bytes.extend_from_slice(&(ciphertext.len() as u32).to_be_bytes());
        bytes.extend_from_slice(&ciphertext);
        let tag = keys.tag(&bytes).ok_or_else(undecryptable)?;
        bytes.extend_from_slice(&tag);

        let signature: [u8; 64] = signer
            .try_sign(&bytes)
            .map_err(Error::Sign)?
            .to_bytes()
            .into();
        if !signature_fits(&self.signer, &bytes, &signature) {
            return Err(Error::SignerChanged {
                expected: self.signer_id,
            });
        }
        Envelope::from_parts(bytes, signature)
    }

    /// The epoch that `moment` falls into, a new one where the last has ended.
    fn epoch(&mut self, moment: &Moment) -> Result<&Epoch, Error> {
        let current = self.epoch.take().filter(|epoch| {
            epoch.boot == moment.boot
                && moment
                    .since_boot_ms
                    .checked_sub(epoch.since_boot_ms)
                    .is_some_and(|age| age < EPOCH_MS)
        });
        let epoch = match current {
            Some(epoch) => epoch,
            None => self.new_epoch(moment)?,
        };
        Ok(self.epoch.insert(epoch))
    }

    fn new_epoch(&self, moment: &Moment) -> Result<Epoch, Error> {
        let mut data_key = DataKey::new([0; 32]);
        getrandom::fill(&mut *data_key)?;
        let mut wraps = Vec::with_capacity(self.owners.len());
        for (id, owner) in &self.owners {
            let info = crypto::wrap_info(&self.device, self.stream, self.signer_id, owner.key());
            let mut wrap = [0; RECIPIENT_LEN];
            wrap[..8].copy_from_slice(&id.0);
            wrap[8..].copy_from_slice(&crypto::wrap(&data_key, owner.key(), &info)?);
            wraps.push(wrap);
        }
        Ok(Epoch {
            prk: crypto::extract(&data_key),
            wraps,
            boot: moment.boot,
            since_boot_ms: moment.since_boot_ms,
        })
    }
}

/// Shows no key.
impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealer")
            .field("device", &self.device)
            .field("stream", &self.stream)
            .field("signer", &self.signer_id)
            .field("owners", &self.owners)
            .finish_non_exhaustive()
    }
}

/// length(1) ‖ content type ‖ body
fn plaintext(content: Content<'_>) -> Result<(Kind, Zeroizing<Vec<u8>>), Error> {
    let json;
    let (kind, content_type, body) = match content {
        Content::Data { content_type, body } => (Kind::Data, content_type, body),
        Content::Report(report) => {
            json = report.to_json()?;
            (report.kind(), "application/json", &json[..])
        }
    };
    if !valid_content_type(content_type.as_bytes()) {
        return Err(Error::malformed(
            "content type",
            "1 to 255 of printable ASCII",
        ));
    }
    if body.len() > MAX_ENCRYPTED_DATA {
        return Err(Error::TooLarge {
            what: "body",
            size: body.len(),
            limit: MAX_ENCRYPTED_DATA,
        });
    }
    let mut plaintext = Zeroizing::new(Vec::with_capacity(1 + content_type.len() + body.len()));
    plaintext.push(content_type.len() as u8);
    plaintext.extend_from_slice(content_type.as_bytes());
    plaintext.extend_from_slice(body);
    Ok((kind, plaintext))
}

/// 24 hours.
const EPOCH_MS: u64 = 24 * 60 * 60 * 1000;
