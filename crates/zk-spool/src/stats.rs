use crate::StreamId;

/// A look at the spool, at no cost: nothing is read from the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// The stream that appends go to.
    pub stream: StreamId,
    /// The number the next record will have.
    pub next_sequence: u64,
    /// The oldest record that waits: its stream and number.
    pub oldest: Option<(StreamId, u64)>,
    /// The newest record that waits: its stream and number.
    pub newest: Option<(StreamId, u64)>,
    /// Records that wait. Damaged ones count until reading has come to them.
    pub records: u64,
    /// Those of them that are not durable yet, and that `peek` holds back.
    pub unsynced: u64,
    /// Bytes that wait, with their framing.
    pub bytes: u64,
    /// Bytes that all segments take on disk; this is what the cap bounds.
    pub disk_bytes: u64,
    /// Segment files.
    pub segments: usize,
    /// The last record acknowledged: its stream and number.
    pub acked: Option<(StreamId, u64)>,
    /// Losses that wait to be confirmed.
    pub losses: usize,
    /// Records appended since the spool was opened.
    pub appended: u64,
    /// Syncs of segments since the spool was opened.
    pub syncs: u64,
    /// Syncs of the state file since the spool was opened: what acknowledging and
    /// noting losses takes.
    pub state_syncs: u64,
    /// Bytes written to all files since the spool was opened.
    pub written: u64,
}

/// What [`verify`](crate::Spool::verify) read, and what it found broken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// Segments read.
    pub segments: usize,
    /// Records whose checksum is right, delivered ones included.
    pub records: u64,
    /// Bytes read.
    pub bytes: u64,
    /// What was found, oldest first. Empty: all is well.
    pub damage: Vec<Damage>,
}

/// A stretch of a file that is not what was written.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Damage {
    /// The file, below the spool's directory.
    pub file: String,
    /// From this byte.
    pub offset: u64,
    /// This many bytes; 0 where bytes are missing.
    pub bytes: u64,
    /// The records that are gone with it: stream, first and last number. `None`
    /// if the place held none.
    pub lost: Option<(StreamId, u64, u64)>,
}
