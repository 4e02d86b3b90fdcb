//! The state file: how far the spool is drained, and what was lost. It is small
//! and written as a whole, into two slots by turns, in place, so that it works
//! on a full disk and a torn write leaves the slot before it.

use std::{io, sync::Arc};

use crc32c::{crc32c, crc32c_append};

use crate::{
    Loss, Reason, StreamId,
    format::{self, Checked, put, stream_at, u32_at, u64_at},
    record::NO_STREAM,
    storage::{Storage, StorageFile, sync, sync_dir},
};

/// Everything before it is delivered, or named by a loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cursor {
    pub(crate) segment: u64,
    pub(crate) stream: StreamId,
    /// The last sequence that is done; 0 before the first.
    pub(crate) sequence: u64,
    /// The frame to read next.
    pub(crate) offset: u64,
}

impl Cursor {
    /// Whether it was set where the state file could not be read, and nor could the
    /// segment: how far the spool was drained is not known.
    pub(crate) fn is_lost(&self) -> bool {
        self.segment > 0 && self.stream == NO_STREAM
    }
}

/// The content of one slot.
#[derive(Clone, Debug, Default)]
pub(crate) struct Contents {
    pub(crate) cursor: Cursor,
    /// What was known to be durable: a segment and a sequence in it.
    pub(crate) synced: (u64, u64),
    next_loss: u64,
    entries: Vec<Entry>,
}

/// A loss, and whether it was confirmed: those are kept while reading can still
/// come upon the same damage, so that nothing is reported twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    loss: Loss,
    confirmed: bool,
}

impl Loss {
    /// Whether what follows can be told together with it, exactly.
    fn is_continued_by(&self, next: &Self) -> bool {
        (self.reason, self.stream) == (next.reason, next.stream)
            && (self.reason == Reason::Full || self.last.checked_add(1) == Some(next.first))
            && (self.records > 0) == (next.records > 0)
    }
}

impl Contents {
    /// Losses that nobody has confirmed.
    pub(crate) fn open_losses(&self) -> impl Iterator<Item = Loss> {
        self.entries
            .iter()
            .filter(|entry| !entry.confirmed)
            .map(|entry| entry.loss)
    }

    /// The last sequence of a stream that losses by damage, drop or refusal know of.
    pub(crate) fn last_lost(&self, stream: StreamId) -> Option<u64> {
        let losses = self.entries.iter().map(|entry| &entry.loss);
        let named = losses.filter(|loss| loss.stream == stream && loss.reason != Reason::Full);
        let last = named.map(|loss| match loss.records {
            // A doubt begins behind the last that is known.
            0 => loss.last.saturating_sub(1),
            _ => loss.last,
        });
        last.max()
    }

    /// The last sequence that was given out before an append to a stream was refused; 0
    /// if none is known of.
    pub(crate) fn last_given(&self, stream: StreamId) -> u64 {
        let losses = self.entries.iter().map(|entry| &entry.loss);
        let refused = losses.filter(|loss| (loss.stream, loss.reason) == (stream, Reason::Full));
        refused.map(|loss| loss.last).max().unwrap_or(0)
    }

    /// The newest segment that is known of.
    pub(crate) fn newest(&self) -> u64 {
        self.cursor.segment.max(self.synced.0)
    }

    pub(crate) fn same_losses(&self, other: &Self) -> bool {
        self.entries == other.entries
    }

    pub(crate) fn confirm(&mut self, through: u64) {
        for entry in &mut self.entries {
            entry.confirmed |= entry.loss.id <= through;
        }
    }

    /// Forgets confirmed losses, but for damage that lies ahead: reading will
    /// come upon it again.
    pub(crate) fn forget(&mut self, ahead: impl Fn(&Loss) -> bool) {
        self.entries.retain(|entry| {
            !entry.confirmed || (entry.loss.reason == Reason::Damaged && ahead(&entry.loss))
        });
    }

    /// The parts of a range that no loss names yet.
    pub(crate) fn unnamed(&self, stream: StreamId, first: u64, last: u64) -> Vec<(u64, u64)> {
        let mut named: Vec<(u64, u64)> = self
            .entries
            .iter()
            .map(|entry| &entry.loss)
            .filter(|loss| loss.stream == stream && loss.reason != Reason::Full)
            .map(|loss| (loss.first, loss.last))
            .collect();
        named.sort_unstable();
        let mut parts = Vec::new();
        let mut from = first;
        for (named_first, named_last) in named {
            if from > last {
                break;
            }
            if named_first > from {
                parts.push((from, last.min(named_first - 1)));
            }
            from = from.max(named_last.saturating_add(1));
        }
        if from <= last {
            parts.push((from, last));
        }
        parts.retain(|(from, to)| from <= to);
        parts
    }

    /// Whether losses say that what was stored from here on can't be known. Those that
    /// name numbers do not say so of what is behind them.
    pub(crate) fn doubts(&self, stream: StreamId, from: u64) -> bool {
        let mut losses = self.entries.iter().map(|entry| &entry.loss);
        losses.any(|loss| {
            (loss.reason, loss.stream, loss.records) == (Reason::Damaged, stream, 0)
                && loss.last >= from
                && self.unnamed(stream, from, loss.first).is_empty()
        })
    }

    /// Names the part of a range that is not named yet.
    pub(crate) fn lose(
        &mut self,
        reason: Reason,
        stream: StreamId,
        first: u64,
        last: u64,
        offered: u64,
    ) {
        for (first, last) in self.unnamed(stream, first, last) {
            let records = (last - first).saturating_add(1);
            self.add(reason, stream, first, last, records, offered);
        }
    }

    /// Adds a loss, to the newest entry if it continues that and nobody has
    /// been offered it yet.
    pub(crate) fn add(
        &mut self,
        reason: Reason,
        stream: StreamId,
        first: u64,
        last: u64,
        records: u64,
        offered: u64,
    ) {
        let now = now_ms();
        if let Some(Entry {
            loss,
            confirmed: false,
        }) = self.entries.last_mut()
            && loss.id > offered
            && (loss.reason, loss.stream) == (reason, stream)
            && (reason == Reason::Full || loss.last.checked_add(1) == Some(first))
            && (loss.records > 0) == (records > 0)
        {
            loss.last = last;
            loss.records = loss.records.saturating_add(records);
            loss.until_ms = now;
            return;
        }
        while self.entries.len() >= MAX_ENTRIES {
            self.merge_oldest();
        }
        let id = self.next_id();
        self.entries.push(Entry {
            loss: Loss {
                id,
                reason,
                stream,
                first,
                last,
                records,
                since_ms: now,
                until_ms: now,
            },
            confirmed: false,
        });
    }

    /// Makes one entry less: a confirmed one goes, or two become one. That is a
    /// new one to whom it is offered. Best two of which one continues the other,
    /// since then it says the same: first of those that name numbers, which may
    /// be named twice without harm, then of those that count. Else the two oldest of
    /// those that nothing will come upon again: of damage that lies ahead, reading
    /// would not know that it is counted already.
    fn merge_oldest(&mut self) {
        if let Some(confirmed) = self.entries.iter().position(|entry| entry.confirmed) {
            self.entries.remove(confirmed);
            return;
        }
        let pairs = || self.entries.windows(2);
        let exact = |pair: &[Entry]| pair[0].loss.is_continued_by(&pair[1].loss);
        let exact = pairs()
            .position(|pair| pair[0].loss.reason != Reason::Full && exact(pair))
            .or_else(|| pairs().position(exact));
        let cursor = self.cursor;
        let settled = |entry: &Entry| {
            entry.loss.reason != Reason::Damaged
                || (entry.loss.stream == cursor.stream && entry.loss.last <= cursor.sequence)
        };
        let mut oldest = (0..self.entries.len()).filter(|at| settled(&self.entries[*at]));
        let two = exact.map(|at| (at, at + 1));
        let two = two.or_else(|| oldest.next().zip(oldest.next()));
        let (at, second) = two.unwrap_or((0, 1));
        let Entry { loss: b, .. } = self.entries.remove(second);
        let Entry { loss: a, .. } = self.entries.remove(at);
        let (reason, stream, first, last) = match exact {
            Some(_) => (a.reason, a.stream, a.first, b.last),
            None => (Reason::Several, NO_STREAM, 0, 0),
        };
        let loss = Loss {
            id: self.next_id(),
            reason,
            stream,
            first,
            last,
            records: a.records.saturating_add(b.records),
            since_ms: a.since_ms.min(b.since_ms),
            until_ms: a.until_ms.max(b.until_ms),
        };
        let confirmed = false;
        self.entries.insert(at, Entry { loss, confirmed });
    }

    /// The newest id that was given out.
    pub(crate) fn last_id(&self) -> u64 {
        self.next_loss
    }

    fn next_id(&mut self) -> u64 {
        self.next_loss += 1;
        self.next_loss
    }

    fn to_slot(&self, generation: u64) -> Vec<u8> {
        let mut bytes = vec![0; FIXED + self.entries.len() * ENTRY];
        put(&mut bytes, 0, MAGIC);
        put(&mut bytes, 8, &format::VERSION.to_be_bytes());
        put(&mut bytes, 16, &generation.to_be_bytes());
        put(&mut bytes, 24, &self.cursor.segment.to_be_bytes());
        put(&mut bytes, 32, &self.cursor.stream.0);
        put(&mut bytes, 48, &self.cursor.sequence.to_be_bytes());
        put(&mut bytes, 56, &self.cursor.offset.to_be_bytes());
        put(&mut bytes, 64, &self.synced.0.to_be_bytes());
        put(&mut bytes, 72, &self.synced.1.to_be_bytes());
        put(&mut bytes, 80, &self.next_loss.to_be_bytes());
        let count = u32::try_from(self.entries.len()).unwrap_or(u32::MAX);
        put(&mut bytes, 88, &count.to_be_bytes());
        for (entry, bytes) in self.entries.iter().zip(bytes[FIXED..].chunks_mut(ENTRY)) {
            put(bytes, 0, &entry.loss.id.to_be_bytes());
            put(bytes, 8, &[entry.loss.reason as u8, entry.confirmed.into()]);
            put(bytes, 16, &entry.loss.stream.0);
            put(bytes, 32, &entry.loss.first.to_be_bytes());
            put(bytes, 40, &entry.loss.last.to_be_bytes());
            put(bytes, 48, &entry.loss.records.to_be_bytes());
            put(bytes, 56, &entry.loss.since_ms.to_be_bytes());
            put(bytes, 64, &entry.loss.until_ms.to_be_bytes());
        }
        let crc = slot_crc(&bytes);
        put(&mut bytes, 12, &crc.to_be_bytes());
        bytes
    }

    /// The generation and the contents of a slot.
    pub(crate) fn from_slot(slot: &[u8]) -> Checked<(u64, Self)> {
        if slot.len() < FIXED || !slot.starts_with(MAGIC) {
            return Checked::Bad;
        }
        let count = u32_at(slot, 88) as usize;
        let used = FIXED.saturating_add(count.saturating_mul(ENTRY));
        if count > MAX_ENTRIES || used > slot.len() || u32_at(slot, 12) != slot_crc(&slot[..used]) {
            return Checked::Bad;
        }
        if let Checked::Newer(version) = format::checked_version(slot, ()) {
            return Checked::Newer(version);
        }
        let mut entries = Vec::with_capacity(count);
        for bytes in slot[FIXED..used].chunks(ENTRY) {
            let Some(reason) = reason_from_byte(bytes[8]) else {
                return Checked::Bad;
            };
            entries.push(Entry {
                loss: Loss {
                    id: u64_at(bytes, 0),
                    reason,
                    stream: stream_at(bytes, 16),
                    first: u64_at(bytes, 32),
                    last: u64_at(bytes, 40),
                    records: u64_at(bytes, 48),
                    since_ms: u64_at(bytes, 56),
                    until_ms: u64_at(bytes, 64),
                },
                confirmed: bytes[9] != 0,
            });
        }
        let contents = Self {
            cursor: Cursor {
                segment: u64_at(slot, 24),
                stream: stream_at(slot, 32),
                sequence: u64_at(slot, 48),
                offset: u64_at(slot, 56),
            },
            synced: (u64_at(slot, 64), u64_at(slot, 72)),
            next_loss: u64_at(slot, 80),
            entries,
        };
        let generation = u64_at(slot, 16);
        if !contents.is_sane() || generation >= format::ABSURD {
            return Checked::Bad;
        }
        format::checked_version(slot, (generation, contents))
    }

    /// Whether all numbers can have been given out.
    fn is_sane(&self) -> bool {
        let Self {
            cursor,
            synced,
            next_loss,
            entries,
        } = self;
        let numbers = [cursor.sequence, synced.1, *next_loss];
        let segments = [cursor.segment, synced.0];
        numbers.iter().all(|number| *number < format::ABSURD)
            && segments.iter().all(|number| *number < format::LAST_SEGMENT)
            && entries.iter().all(|Entry { loss, .. }| {
                loss.id < format::ABSURD && loss.first <= loss.last && loss.last < u64::MAX
            })
    }
}

/// The state file, open.
#[derive(Debug)]
pub(crate) struct Ledger {
    file: Arc<dyn StorageFile>,
    generation: u64,
    contents: Contents,
    /// Losses up to this id were offered, and no longer change.
    pub(crate) offered: u64,
    /// Whether both slots could be read: then the cursor is the newest.
    pub(crate) trusted: bool,
    /// Whether neither slot could be read: if the spool is not new, losses that
    /// nobody confirmed are forgotten.
    pub(crate) forgotten: bool,
    /// Whether the contents are on the medium for certain: what was read at
    /// opening may be of a write whose sync failed.
    pub(crate) settled: bool,
    /// The newest slot as it was read, until it is written once more: after a sync
    /// that failed it may be in memory only, and then the other one is all there is
    /// on the medium.
    unsure: Option<Vec<u8>>,
    /// Whether a slot is missing or damaged, or the whole file.
    pub(crate) to_mend: bool,
    /// How often the file was synced.
    pub(crate) syncs: u64,
}

impl Ledger {
    /// The version of the state file, if that is newer than what is known here.
    pub(crate) fn newer_version(storage: &dyn Storage) -> io::Result<Option<u32>> {
        let file = match storage.open(format::STATE_FILE) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let slots = read_slots(&*file, file.size()?);
        Ok(slots
            .chunks(SLOT)
            .find_map(|slot| match Contents::from_slot(slot) {
                Checked::Newer(version) => Some(version),
                Checked::Good(_) | Checked::Bad => None,
            }))
    }

    /// Whether something is in the state file that no spool has written there: one
    /// without a marker has at most begun to make it.
    pub(crate) fn is_foreign(storage: &dyn Storage) -> io::Result<bool> {
        let file = match storage.open(format::STATE_FILE) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            file => file?,
        };
        let slots = read_slots(&*file, file.size()?);
        let known = slots.chunks(SLOT).any(|slot| slot.starts_with(MAGIC));
        Ok(!known && slots.iter().any(|byte| *byte != 0))
    }

    /// Opens the state file, makes it if it is missing and mends its length.
    /// Slots that can't be read count as empty; they are to be [mended](Self::mend)
    /// when it is known what should be in them.
    pub(crate) fn open(storage: &dyn Storage) -> io::Result<Self> {
        let file = match storage.open(format::STATE_FILE) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                storage.create(format::STATE_FILE)?
            }
            file => file?,
        };
        let present = file.size()?;
        let slots = read_slots(&*file, present);

        let mut best: Option<(u64, Contents)> = None;
        let mut good = 0;
        for slot in slots.chunks(SLOT) {
            if let Checked::Good((generation, contents)) = Contents::from_slot(slot) {
                good += 1;
                if best.as_ref().is_none_or(|(newest, _)| *newest < generation) {
                    best = Some((generation, contents));
                }
            }
        }
        let (generation, contents) = best.unwrap_or_default();
        let mut ledger = Self {
            file,
            generation,
            contents,
            offered: 0,
            trusted: good == 2,
            forgotten: good == 0,
            settled: false,
            unsure: None,
            to_mend: false,
            syncs: 0,
        };
        // With one good slot, the next damage would make losses forgotten; and
        // whoever made the file may have been killed before it was synced.
        if present != slots.len() as u64 || good < 2 {
            // Room for both slots, taken now so that none is needed later.
            if present < slots.len() as u64 {
                let missing = vec![0; slots.len() - present as usize];
                ledger.file.write_at(&missing, present)?;
            } else {
                ledger.file.set_len(slots.len() as u64)?;
            }
            ledger.to_mend = true;
        }
        if good == 2 {
            ledger.unsure = Some(ledger.contents.to_slot(generation));
        }
        Ok(ledger)
    }

    pub(crate) fn contents(&self) -> &Contents {
        &self.contents
    }

    /// Writes both slots and makes the file's name durable.
    pub(crate) fn mend(&mut self, storage: &dyn Storage, contents: Contents) -> io::Result<()> {
        self.commit_both(contents)?;
        sync_dir(storage, "")?;
        self.to_mend = false;
        Ok(())
    }

    /// Makes new contents durable; they hold only if it succeeds. Returns the
    /// bytes written.
    pub(crate) fn commit(&mut self, contents: Contents) -> io::Result<u64> {
        let mut written = 0;
        if let Some(slot) = self.unsure.take() {
            let again = self.write(self.generation, &slot);
            written += slot.len() as u64;
            self.unsure = again.is_err().then_some(slot);
            again?;
        }
        let generation = self.generation + 1;
        let slot = contents.to_slot(generation);
        self.write(generation, &slot)?;
        self.generation = generation;
        self.contents = contents;
        self.settled = true;
        Ok(written + slot.len() as u64)
    }

    /// Writes a slot into its place, durably.
    fn write(&mut self, generation: u64, slot: &[u8]) -> io::Result<()> {
        self.file.write_at(slot, (generation % 2) * SLOT as u64)?;
        self.syncs += 1;
        sync(&*self.file)
    }

    /// Takes contents over that follow from what is on disk anyway.
    pub(crate) fn assume(&mut self, contents: Contents) {
        self.contents = contents;
        self.settled = false;
    }

    /// As `commit`, into both slots, so that no single damaged slot can make a
    /// loss forgotten.
    pub(crate) fn commit_both(&mut self, contents: Contents) -> io::Result<u64> {
        let written = self.commit(contents.clone())?;
        Ok(written + self.commit(contents)?)
    }
}

impl Default for Cursor {
    fn default() -> Self {
        Self {
            segment: 0,
            stream: NO_STREAM,
            sequence: 0,
            offset: 0,
        }
    }
}

/// Both slots. A sector that can't be read, or is not there, is as good as one
/// that is damaged.
fn read_slots(file: &dyn StorageFile, present: u64) -> Vec<u8> {
    let mut slots = vec![0; 2 * SLOT];
    let readable = slots
        .len()
        .min(usize::try_from(present).unwrap_or(usize::MAX));
    crate::walk::read_salvaging(file, &mut slots[..readable], 0);
    slots
}

fn slot_crc(used: &[u8]) -> u32 {
    crc32c_append(crc32c(&used[..12]), &used[16..])
}

fn reason_from_byte(byte: u8) -> Option<Reason> {
    Some(match byte {
        1 => Reason::Damaged,
        2 => Reason::Dropped,
        3 => Reason::Refused,
        4 => Reason::Full,
        5 => Reason::Several,
        _ => return None,
    })
}

fn now_ms() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| {
            u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
        })
}

const ENTRY: usize = 72;
const FIXED: usize = 96;
const MAGIC: &[u8; 8] = b"zk-spsta";
const MAX_ENTRIES: usize = (SLOT - FIXED) / ENTRY;
pub(crate) const SLOT: usize = 16 << 10;
