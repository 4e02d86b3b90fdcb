use crate::StreamId;

/// Records that were appended, or offered, and will not be delivered. Stored
/// durably before anything is taken away, and offered by
/// [`losses`](crate::Spool::losses) until confirmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Loss {
    /// Ascending, and never used twice in a spool.
    pub id: u64,
    /// Why.
    pub reason: Reason,
    /// The stream; all zero for [`Reason::Several`].
    pub stream: StreamId,
    /// The first sequence number lost. For [`Reason::Full`], which concerns
    /// records that never had a number: the last number given before the first
    /// of them.
    pub first: u64,
    /// The last sequence number lost. For [`Reason::Full`]: the last number
    /// given before the last of them.
    pub last: u64,
    /// How many were lost; 0 where that can't be known, and then `first` is
    /// where the doubt begins.
    pub records: u64,
    /// When the first was found lost, by the system's clock, in milliseconds
    /// since 1970.
    pub since_ms: u64,
    /// When the last was found lost.
    pub until_ms: u64,
}

/// Why records were lost. The numbers are those on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// They were durable and could not be read back. What is left of their
    /// segment is kept in `damaged/`.
    Damaged = 1,
    /// The spool was at its cap, with [`Full::DropOldest`](crate::Full::DropOldest).
    Dropped = 2,
    /// The receiver refused them for good ([`reject`](crate::Spool::reject)).
    /// They are kept in `rejected/`.
    Refused = 3,
    /// An append was refused because spool or disk were full, or the caller gave
    /// it up ([`refuse`](crate::Spool::refuse)). Counted when the append returns;
    /// where appends are durable within a window
    /// ([`SyncPolicy::Every`](crate::SyncPolicy::Every)) a power cut may take those
    /// of the last window. A caller that tries the same record again is counted each
    /// time.
    Full = 4,
    /// More different losses than the table holds (226) were waiting to be
    /// confirmed; of the oldest only the number was kept. Or, with 0 records:
    /// the table was damaged, and what stood in it is not known.
    Several = 5,
}
