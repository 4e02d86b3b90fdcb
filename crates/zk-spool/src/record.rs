use std::fmt;

/// Names one run of sequence numbers without a gap: 16 random bytes, chosen
/// when the stream begins.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub [u8; 16]);

impl fmt::Display for StreamId {
    /// 32 lower-case hexadecimal digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StreamId({self})")
    }
}

/// The stream before the current one: where it ended and why. It stands on disk
/// for as long as the current stream does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Predecessor {
    /// Its id.
    pub stream: StreamId,
    /// The last sequence number of it that had become durable: each one up to
    /// here was kept, or is named by a [`Loss`](crate::Loss). What an append
    /// may have been given beyond it is gone.
    pub last_sequence: u64,
    /// Why it ended.
    pub end: End,
}

/// Why a stream ended. Sequence numbers that may have been given out are never
/// given out again, so a new stream begins wherever that is in doubt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum End {
    /// The log ended in bytes that no append had made durable; they were cut
    /// off.
    Cut,
    /// Something that had been durable was damaged or missing.
    Damaged,
    /// The log was whole, but records are made durable within a window
    /// ([`SyncPolicy::Every`](crate::SyncPolicy::Every)), and the spool was not
    /// closed: what was appended in the last window may be gone.
    Window,
}

/// A durable record that waits to be delivered.
#[derive(Clone, Debug)]
pub struct Record {
    pub(crate) position: Position,
    pub(crate) bytes: Vec<u8>,
}

impl Record {
    /// The stream it belongs to.
    pub fn stream(&self) -> StreamId {
        self.position.stream
    }

    /// Its number in the stream, from 1.
    pub fn sequence(&self) -> u64 {
        self.position.sequence
    }

    /// What the append's closure returned.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The bytes without the rest.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Where it stands, for [`ack`](crate::Spool::ack) and
    /// [`reject`](crate::Spool::reject).
    pub fn position(&self) -> Position {
        self.position
    }
}

impl AsRef<[u8]> for Record {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// The place of a record in the spool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    pub(crate) stream: StreamId,
    pub(crate) sequence: u64,
    pub(crate) segment: u64,
    /// Where reading goes on behind it: the next frame, or its own frame when
    /// that holds more.
    pub(crate) resume: u64,
}

/// Stands for no stream where one is written down.
pub(crate) const NO_STREAM: StreamId = StreamId([0; 16]);
