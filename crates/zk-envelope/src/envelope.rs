//! The signed bytes: layout, verification, opening.

use std::fmt;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use p256::ecdsa::VerifyingKey;
use zeroize::Zeroizing;

use crate::crypto::{self, MessageKeys};
use crate::id::{BootId, DeviceId, KeyId, RecipientId, StreamId, Timestamp};
use crate::report::Report;
use crate::{Error, OwnerKey};

/// What a record is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// The application's own data; sensor readings are the usual case.
    Data = 1,
    /// A [`Report::LossReceipt`]: records that will never arrive, and why.
    LossReceipt = 2,
    /// A [`Report::TimeAnchor`]: the wall clock was set.
    TimeAnchor = 3,
    /// A [`Report::DeviceEvent`]: something happened to the device itself.
    DeviceEvent = 4,
    /// A [`Report::Heartbeat`]: alive, and this is all there is so far.
    Heartbeat = 5,
}

impl Kind {
    fn from_byte(byte: u8) -> Result<Self, Error> {
        Ok(match byte {
            1 => Self::Data,
            2 => Self::LossReceipt,
            3 => Self::TimeAnchor,
            4 => Self::DeviceEvent,
            5 => Self::Heartbeat,
            _ => return Err(Error::malformed("kind", "1 to 5")),
        })
    }
}

/// Writes `data`, `loss-receipt`, `time-anchor`, `device-event` or `heartbeat`.
impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Data => "data",
            Self::LossReceipt => "loss-receipt",
            Self::TimeAnchor => "time-anchor",
            Self::DeviceEvent => "device-event",
            Self::Heartbeat => "heartbeat",
        })
    }
}

/// What the device knew of its wall clock. A name, not a rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum ClockQuality {
    /// Nothing is known; after a start without network, likely wrong.
    Unknown = 0,
    /// Was set once and runs on its own.
    FreeRunning = 1,
    /// The kernel says that it is disciplined by a time source.
    Synchronised = 2,
    /// Taken from a battery-backed clock.
    HardwareClock = 3,
}

impl ClockQuality {
    fn from_byte(byte: u8) -> Result<Self, Error> {
        Ok(match byte {
            0 => Self::Unknown,
            1 => Self::FreeRunning,
            2 => Self::Synchronised,
            3 => Self::HardwareClock,
            _ => return Err(Error::malformed("clock quality", "0 to 3")),
        })
    }
}

/// Writes `unknown`, `free-running`, `synchronised` or `hardware-clock`.
impl fmt::Display for ClockQuality {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "unknown",
            Self::FreeRunning => "free-running",
            Self::Synchronised => "synchronised",
            Self::HardwareClock => "hardware-clock",
        })
    }
}

/// The part of a record that anybody can read; the signature covers it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the record is about.
    pub kind: Kind,
    /// Who made it.
    pub device: DeviceId,
    /// Which spool it went through.
    pub stream: StreamId,
    /// Its number in that stream: from 1, without gaps.
    pub sequence: u64,
    /// The boot during which it was made.
    pub boot: BootId,
    /// Milliseconds since that boot, by a clock that is never set.
    pub since_boot_ms: u64,
    /// The wall clock.
    pub time: Timestamp,
    /// What the device knew of its wall clock.
    pub clock: ClockQuality,
    /// The key that signs it.
    pub signer: KeyId,
    /// The owners who can open it, ascending: 1 to 8.
    pub recipients: Vec<RecipientId>,
}

/// An envelope whose structure is right and of which nothing is proven.
///
/// The bytes that travelled are kept and are what is verified; nothing is ever
/// serialised again.
#[derive(Clone)]
pub struct Envelope {
    encrypted_data: Vec<u8>,
    signature: [u8; 64],
    header: Header,
    layout: Layout,
}

/// Where in `encrypted_data` the parts lie that the header does not repeat.
#[derive(Clone, Copy)]
struct Layout {
    /// First byte of the first recipient block.
    recipients: usize,
    /// First byte of the IV; everything before it goes into the message keys.
    iv: usize,
    /// First byte of the ciphertext.
    ciphertext: usize,
    /// First byte of the tag; it covers everything before it.
    tag: usize,
}

impl Envelope {
    /// Parses the signed bytes and takes the signature beside them: 64 bytes,
    /// r then s, big-endian.
    ///
    /// # Errors
    /// [`Error::TooLarge`], [`Error::UnsupportedVersion`] or
    /// [`Error::Malformed`] with the field and the rule that it breaks.
    pub fn from_parts(encrypted_data: Vec<u8>, signature: [u8; 64]) -> Result<Self, Error> {
        let (header, layout) = parse(&encrypted_data)?;
        Ok(Self {
            encrypted_data,
            signature,
            header,
            layout,
        })
    }

    /// Reads what [`Envelope::to_bytes`] wrote.
    ///
    /// # Errors
    /// As [`Envelope::from_parts`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Error> {
        let (encrypted_data, signature) = bytes.split_last_chunk::<64>().ok_or(
            Error::malformed("sealed record", "ends in a signature of 64 bytes"),
        )?;
        Self::from_parts(encrypted_data.to_vec(), *signature)
    }

    /// The sealed record as it lies in a spool: `encryptedData`, then the 64
    /// bytes of the signature.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        [&self.encrypted_data[..], &self.signature].concat()
    }

    /// The bytes that the signature covers: everything there is.
    #[must_use]
    pub fn encrypted_data(&self) -> &[u8] {
        &self.encrypted_data
    }

    /// 64 bytes: r, then s, big-endian.
    #[must_use]
    pub fn signature(&self) -> &[u8; 64] {
        &self.signature
    }

    /// What the bytes claim. Anybody can have written them: good for finding
    /// the key to verify with, and for nothing else.
    #[must_use]
    pub fn unverified_header(&self) -> &Header {
        &self.header
    }

    /// Checks that `key` is the signer that the envelope names, and that its
    /// signature covers these very bytes.
    ///
    /// # Errors
    /// [`Error::WrongSigner`], [`Error::BadSignature`].
    pub fn verify(self, key: &VerifyingKey) -> Result<Verified, Error> {
        let given = KeyId::of(key);
        if self.header.signer != given {
            return Err(Error::WrongSigner {
                stated: self.header.signer,
                given,
            });
        }
        if !signature_fits(key, &self.encrypted_data, &self.signature) {
            return Err(Error::BadSignature);
        }
        Ok(Verified(self))
    }
}

/// Shows the header and sizes only.
impl fmt::Debug for Envelope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Envelope")
            .field("header", &self.header)
            .field("bytes", &self.encrypted_data.len())
            .finish_non_exhaustive()
    }
}

/// An envelope whose signature was made by the key that it names: the header
/// is the device's word.
#[derive(Clone, Debug)]
pub struct Verified(Envelope);

impl Verified {
    /// What the device says of the record.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.0.header
    }

    /// The bytes that the signature covers.
    #[must_use]
    pub fn encrypted_data(&self) -> &[u8] {
        &self.0.encrypted_data
    }

    /// 64 bytes: r, then s, big-endian.
    #[must_use]
    pub fn signature(&self) -> &[u8; 64] {
        &self.0.signature
    }

    /// Checks the tag with the data key that is wrapped for this owner, then
    /// decrypts.
    ///
    /// # Errors
    /// [`Error::NotARecipient`] if nothing is wrapped for this owner;
    /// [`Error::Undecryptable`] for everything else.
    pub fn open(&self, owner: &OwnerKey) -> Result<Opened, Error> {
        let Envelope {
            encrypted_data,
            header,
            layout,
            ..
        } = &self.0;
        let id = owner.id();
        let Some(place) = header.recipients.iter().position(|r| *r == id) else {
            return Err(Error::NotARecipient {
                owner: id,
                recipients: header.recipients.clone(),
            });
        };
        let block = layout.recipients + place * RECIPIENT_LEN;
        let (enc, wrapped) = encrypted_data[block + 8..block + RECIPIENT_LEN].split_at(65);
        let data_key = owner.unwrap_data_key(header, enc, wrapped)?;
        let keys = MessageKeys::derive(&crypto::extract(&data_key), &encrypted_data[..layout.iv])
            .ok_or(Error::Undecryptable)?;
        if !keys.tag_fits(&encrypted_data[..layout.tag], &encrypted_data[layout.tag..]) {
            return Err(Error::Undecryptable);
        }
        let iv = encrypted_data[layout.iv..]
            .first_chunk()
            .ok_or(Error::Undecryptable)?;
        let plaintext = keys
            .decrypt(iv, &encrypted_data[layout.ciphertext..layout.tag])
            .ok_or(Error::Undecryptable)?;
        let type_len = content_type_len(&plaintext).ok_or(Error::Undecryptable)?;
        Ok(Opened {
            header: header.clone(),
            plaintext,
            type_len,
        })
    }
}

/// A record whose signature and tag are right, decrypted. The plaintext is
/// wiped when it is dropped.
pub struct Opened {
    header: Header,
    plaintext: Zeroizing<Vec<u8>>,
    type_len: usize,
}

impl Opened {
    /// What the device says of the record.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The media type of the body, for example `application/json`.
    #[must_use]
    pub fn content_type(&self) -> &str {
        str::from_utf8(&self.plaintext[1..=self.type_len]).unwrap_or_default()
    }

    /// The body, as the device's application gave it.
    #[must_use]
    pub fn body(&self) -> &[u8] {
        &self.plaintext[1 + self.type_len..]
    }

    /// The body of a record of kind 2 to 5, parsed; `None` for kind 1, whose
    /// body is the application's own.
    ///
    /// # Errors
    /// [`Error::Json`] or [`Error::Malformed`]: the device signed a body that
    /// this version does not understand; [`Opened::body`] still shows it.
    pub fn report(&self) -> Result<Option<Report>, Error> {
        Report::parse(self.header.kind, self.body())
    }
}

/// Shows no content.
impl fmt::Debug for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opened")
            .field("header", &self.header)
            .field("body_len", &self.body().len())
            .finish_non_exhaustive()
    }
}

/// ECDSA P-256 with SHA-256 over `message`, by aws-lc-rs.
pub(crate) fn signature_fits(key: &VerifyingKey, message: &[u8], signature: &[u8; 64]) -> bool {
    UnparsedPublicKey::new(
        &ECDSA_P256_SHA256_FIXED,
        key.to_sec1_point(false).as_bytes(),
    )
    .verify(message, signature)
    .is_ok()
}

/// Writes everything before the IV: the bytes that the message keys depend on.
pub(crate) fn write_head(header: &Header, wraps: &[[u8; RECIPIENT_LEN]]) -> Vec<u8> {
    let device = header.device.as_str().as_bytes();
    let mut head = Vec::with_capacity(FIXED_LEN + device.len() + wraps.len() * RECIPIENT_LEN);
    head.extend_from_slice(&MAGIC);
    // The lengths are in range by construction: a device id has at most 64
    // bytes, a sealer at most 8 owners.
    head.extend_from_slice(&[SUITE, header.kind as u8, device.len() as u8]);
    head.extend_from_slice(device);
    head.extend_from_slice(&header.stream.0);
    head.extend_from_slice(&header.sequence.to_be_bytes());
    head.extend_from_slice(&header.boot.0);
    head.extend_from_slice(&header.since_boot_ms.to_be_bytes());
    head.extend_from_slice(&header.time.as_millis().to_be_bytes());
    head.push(header.clock as u8);
    head.extend_from_slice(&header.signer.0);
    head.push(wraps.len() as u8);
    for wrap in wraps {
        head.extend_from_slice(wrap);
    }
    head
}

/// The length of the content type, if the plaintext has the form
/// length ‖ type ‖ body with a type of visible ASCII.
fn content_type_len(plaintext: &[u8]) -> Option<usize> {
    let (len, rest) = plaintext.split_first()?;
    let content_type = rest.get(..usize::from(*len))?;
    valid_content_type(content_type).then_some(content_type.len())
}

/// 1 to 255 bytes of printable ASCII.
pub(crate) fn valid_content_type(content_type: &[u8]) -> bool {
    (1..=255).contains(&content_type.len())
        && content_type.iter().all(|b| (b' '..=b'~').contains(b))
}

fn parse(bytes: &[u8]) -> Result<(Header, Layout), Error> {
    if bytes.len() > MAX_ENCRYPTED_DATA {
        return Err(Error::TooLarge {
            what: "encryptedData",
            size: bytes.len(),
            limit: MAX_ENCRYPTED_DATA,
        });
    }
    let mut cursor = Cursor { bytes, at: 0 };
    let magic: [u8; 4] = cursor.array()?;
    let suite = cursor.byte()?;
    if magic != MAGIC || suite != SUITE {
        return Err(Error::UnsupportedVersion { magic, suite });
    }
    let kind = Kind::from_byte(cursor.byte()?)?;
    let device_len = usize::from(cursor.byte()?);
    let device = str::from_utf8(cursor.take(device_len)?)
        .map_err(|_| Error::malformed("device id", "ASCII"))?;
    let device = DeviceId::try_from(device)?;
    let stream = StreamId(cursor.array()?);
    let sequence = u64::from_be_bytes(cursor.array()?);
    if sequence == 0 {
        return Err(Error::malformed("sequence", "starts at 1"));
    }
    let boot = BootId(cursor.array()?);
    let since_boot_ms = u64::from_be_bytes(cursor.array()?);
    let time = Timestamp::from_millis(u64::from_be_bytes(cursor.array()?))
        .ok_or(Error::malformed("wall clock", "at most 253402300799999 ms"))?;
    let clock = ClockQuality::from_byte(cursor.byte()?)?;
    let signer = KeyId(cursor.array()?);
    let count = usize::from(cursor.byte()?);
    if !(1..=MAX_OWNERS).contains(&count) {
        return Err(Error::malformed("number of recipients", "1 to 8"));
    }
    let recipients_at = cursor.at;
    let mut recipients: Vec<RecipientId> = Vec::with_capacity(count);
    for _ in 0..count {
        let id = RecipientId(cursor.array()?);
        if recipients.last().is_some_and(|before| *before >= id) {
            return Err(Error::malformed("recipients", "strictly ascending by id"));
        }
        recipients.push(id);
        cursor.take(RECIPIENT_LEN - 8)?;
    }
    let iv = cursor.at;
    cursor.take(16)?;
    // The cast cannot lose bits: usize has 64 of them on every supported system.
    let ciphertext_len = u32::from_be_bytes(cursor.array()?) as usize;
    if ciphertext_len == 0 || !ciphertext_len.is_multiple_of(16) {
        return Err(Error::malformed(
            "ciphertext",
            "a positive multiple of 16 bytes",
        ));
    }
    let ciphertext = cursor.at;
    cursor.take(ciphertext_len)?;
    let tag = cursor.at;
    cursor.take(32)?;
    if cursor.at != bytes.len() {
        return Err(Error::malformed("encryptedData", "nothing after the tag"));
    }
    let header = Header {
        kind,
        device,
        stream,
        sequence,
        boot,
        since_boot_ms,
        time,
        clock,
        signer,
        recipients,
    };
    Ok((
        header,
        Layout {
            recipients: recipients_at,
            iv,
            ciphertext,
            tag,
        },
    ))
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], Error> {
        let part = self
            .bytes
            .get(self.at..)
            .and_then(|rest| rest.get(..len))
            .ok_or(Error::malformed(
                "encryptedData",
                "as long as its fields say",
            ))?;
        self.at += len;
        Ok(part)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    fn byte(&mut self) -> Result<u8, Error> {
        Ok(self.array::<1>()?[0])
    }
}

pub(crate) const MAGIC: [u8; 4] = *b"ZKE1";
pub(crate) const SUITE: u8 = 1;
/// The most owners of one record.
pub(crate) const MAX_OWNERS: usize = 8;
/// Recipient id, HPKE encapsulated key, wrapped data key.
pub(crate) const RECIPIENT_LEN: usize = 8 + 65 + 48;
/// Everything before the IV but device id and recipients.
const FIXED_LEN: usize = 4 + 1 + 1 + 1 + 16 + 8 + 16 + 8 + 8 + 1 + 32 + 1;

/// The largest `encryptedData`, in bytes: in hex and with the longest device
/// id it still makes a message of at most [`crate::MAX_MESSAGE`].
pub const MAX_ENCRYPTED_DATA: usize = 65_376;
