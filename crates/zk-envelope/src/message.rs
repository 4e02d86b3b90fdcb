//! The message on the wire: one envelope or several of one device, in JSON.

use serde::de::{Deserializer, Error as _};
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::envelope::Envelope;
use crate::report::{Object, from_object};

/// A message whose JSON and hex are right. The envelopes in it are not looked
/// into: each stands or falls on its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The routing copy of the device id; the signed ones decide.
    pub device_id: String,
    /// One entry, or those of a batch in their order.
    pub entries: Vec<Entry>,
}

/// One envelope of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The routing copy of the wall clock; the signed one decides.
    pub timestamp: String,
    /// The signed bytes.
    pub encrypted_data: Vec<u8>,
    /// 64 bytes: r, then s, big-endian.
    pub signature: [u8; 64],
}

impl Message {
    /// Parses
    /// `{"deviceId":…,"timestamp":…,"data":{"encryptedData":…,"signature":…}}` or
    /// `{"deviceId":…,"batch":[{"timestamp":…,"data":{…}},…]}`.
    ///
    /// The order of members and white space are free. Unknown, repeated,
    /// missing and `null` members, upper-case hex, an empty batch, routing
    /// copies of more than 64 bytes and anything after the object are refused.
    ///
    /// # Errors
    /// [`Error::TooLarge`] above [`MAX_MESSAGE`] bytes; [`Error::Json`];
    /// [`Error::Malformed`].
    pub fn parse(json: &[u8]) -> Result<Self, Error> {
        if json.len() > MAX_MESSAGE {
            return Err(Error::TooLarge {
                what: "message",
                size: json.len(),
                limit: MAX_MESSAGE,
            });
        }
        let wire: WireMessage<'_> = from_object(json)?;
        let entries = match (wire.timestamp, wire.data, wire.batch) {
            (Some(timestamp), Some(Object(data)), None) => vec![Entry::read(timestamp, &data)?],
            (None, None, Some(batch)) if !batch.is_empty() => batch
                .into_iter()
                .map(|Object(entry)| Entry::read(entry.timestamp, &entry.data.0))
                .collect::<Result<_, _>>()?,
            _ => {
                return Err(Error::malformed(
                    "message",
                    "either timestamp and data, or a batch of at least one entry",
                ));
            }
        };
        let copies = entries.iter().map(|entry| &entry.timestamp);
        if copies
            .chain([&wire.device_id])
            .any(|copy| copy.len() > MAX_COPY)
        {
            return Err(Error::malformed(
                "deviceId or timestamp",
                "at most 64 bytes of UTF-8",
            ));
        }
        Ok(Self {
            device_id: wire.device_id,
            entries,
        })
    }

    /// Writes what [`Message::parse`] reads, without white space: a single
    /// message for one entry, a batch for more.
    ///
    /// # Errors
    /// [`Error::Malformed`] for no entries.
    pub fn to_json(&self) -> Result<Vec<u8>, Error> {
        let (timestamp, data, batch) = match &self.entries[..] {
            [] => return Err(Error::malformed("message", "at least one record")),
            [entry] => (
                Some(entry.timestamp.clone()),
                Some(Object(entry.wire_data())),
                None,
            ),
            entries => (None, None, Some(entries.iter().map(Entry::wire).collect())),
        };
        let device_id = self.device_id.clone();
        Ok(serde_json::to_vec(&WireMessage {
            device_id,
            timestamp,
            data,
            batch,
        })?)
    }
}

impl Entry {
    /// Parses the signed bytes.
    ///
    /// # Errors
    /// As [`Envelope::from_parts`].
    pub fn envelope(&self) -> Result<Envelope, Error> {
        Envelope::from_parts(self.encrypted_data.clone(), self.signature)
    }

    /// Its bytes in JSON, for a timestamp that needs no escape.
    fn size(&self) -> usize {
        ENTRY_OVERHEAD + self.timestamp.len() + 2 * (self.encrypted_data.len() + 64)
    }

    fn wire(&self) -> Object<WireEntry<'static>> {
        Object(WireEntry {
            timestamp: self.timestamp.clone(),
            data: Object(self.wire_data()),
        })
    }

    fn wire_data(&self) -> WireData<'static> {
        WireData {
            encrypted_data: base16ct::lower::encode_string(&self.encrypted_data).into(),
            signature: base16ct::lower::encode_string(&self.signature).into(),
        }
    }

    fn read(timestamp: String, data: &WireData<'_>) -> Result<Self, Error> {
        let mut signature = [0; 64];
        let hex = "lower-case hex";
        if data.signature.len() != 128 {
            return Err(Error::malformed(
                "signature",
                "128 digits of lower-case hex",
            ));
        }
        base16ct::lower::decode(data.signature.as_bytes(), &mut signature)
            .map_err(|_| Error::malformed("signature", hex))?;
        let encrypted_data = base16ct::lower::decode_vec(data.encrypted_data.as_bytes())
            .map_err(|_| Error::malformed("encryptedData", hex))?;
        Ok(Self {
            timestamp,
            encrypted_data,
            signature,
        })
    }
}

/// The entry of an envelope: its bytes, and the copy of its time.
impl From<&Envelope> for Entry {
    fn from(envelope: &Envelope) -> Self {
        Self {
            timestamp: envelope.unverified_header().time.to_string(),
            encrypted_data: envelope.encrypted_data().to_vec(),
            signature: *envelope.signature(),
        }
    }
}

/// Makes a message of the oldest of `records`, as many as fit into `limit`
/// bytes, but at least one: a single message for one record, a batch for more.
/// Returns it and the number of records that it holds.
///
/// `records` are sealed records ([`Envelope::to_bytes`]), oldest first. A batch
/// ends before a record of another device.
///
/// # Errors
/// [`Error::Malformed`] for no records; as [`Envelope::from_bytes`] if the
/// first of them is not a sealed record. A later one that is not ends the
/// batch before it, so that it comes first the next time and blocks nothing
/// that came before it.
pub fn pack(records: &[impl AsRef<[u8]>], limit: usize) -> Result<(Vec<u8>, usize), Error> {
    let limit = limit.min(MAX_MESSAGE);
    let first = records
        .first()
        .ok_or(Error::malformed("message", "at least one record"))?;
    let first = Envelope::from_bytes(first.as_ref())?;
    let device = &first.unverified_header().device;

    let mut entries = vec![Entry::from(&first)];
    let mut size = BATCH_OVERHEAD + device.as_str().len() + entries[0].size();
    for record in &records[1..] {
        let Ok(envelope) = Envelope::from_bytes(record.as_ref()) else {
            break;
        };
        let entry = Entry::from(&envelope);
        size += ",".len() + entry.size();
        if size > limit || envelope.unverified_header().device != *device {
            break;
        }
        entries.push(entry);
    }
    let taken = entries.len();
    let device_id = device.to_string();
    Ok((Message { device_id, entries }.to_json()?, taken))
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WireMessage<'a> {
    #[serde(rename = "deviceId")]
    device_id: String,
    #[serde(
        default,
        deserialize_with = "present",
        skip_serializing_if = "Option::is_none"
    )]
    timestamp: Option<String>,
    #[serde(
        borrow,
        default,
        deserialize_with = "present",
        skip_serializing_if = "Option::is_none"
    )]
    data: Option<Object<WireData<'a>>>,
    #[serde(
        borrow,
        default,
        deserialize_with = "present",
        skip_serializing_if = "Option::is_none"
    )]
    batch: Option<Vec<Object<WireEntry<'a>>>>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WireEntry<'a> {
    timestamp: String,
    #[serde(borrow)]
    data: Object<WireData<'a>>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WireData<'a> {
    #[serde(borrow, rename = "encryptedData")]
    encrypted_data: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    signature: std::borrow::Cow<'a, str>,
}

/// A member that may be absent, but not `null`.
fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    Option::deserialize(deserializer)?.map_or_else(
        || Err(D::Error::custom("a member is null: leave it out")),
        |value| Ok(Some(value)),
    )
}

/// The largest message, in bytes: what AWS IoT Core takes.
pub const MAX_MESSAGE: usize = 128 * 1024;

/// No signed value has a longer text. Without this a batch whose device id
/// fills half the message would be many times its size as evidence, which has
/// the device id once for each record.
const MAX_COPY: usize = 64;

const BATCH_OVERHEAD: usize = r#"{"deviceId":"","batch":[]}"#.len();
const ENTRY_OVERHEAD: usize =
    r#"{"timestamp":"","data":{"encryptedData":"","signature":""}}"#.len();
