//! What happens when a spool is opened: finding out what is there without
//! reading more than the newest segment. Nothing is cut or moved here; what has
//! to be is left to the first append, so that a spool can be opened and drained
//! on a full disk. Only what must not be forgotten is written: losses, in
//! place, into the state file.

use std::{collections::VecDeque, io};

use crate::{
    Error, Predecessor, Reason, StreamId,
    error::At,
    format::{self, Checked, ENDED_KEPT, Ended},
    ledger::Ledger,
    record::NO_STREAM,
    segment::{Ends, Segment, make_durable},
    storage::{Storage, is_damage, sync, sync_dir},
    survey::{Known, Start, Survey, survey},
    walk::read_salvaging,
};

/// A spool as it was found.
#[derive(Debug)]
pub(crate) struct Recovered {
    pub(crate) segments: VecDeque<Segment>,
    pub(crate) ledger: Ledger,
    pub(crate) stream: StreamId,
    pub(crate) predecessor: Option<Predecessor>,
    /// The streams before this one that left a trace, newest first.
    pub(crate) before: Vec<Ended>,
    /// All streams that are known to be over.
    pub(crate) ended: Vec<Ended>,
    pub(crate) next_sequence: u64,
    /// The number of the next segment file.
    pub(crate) next_segment: u64,
    pub(crate) start: Start,
    /// Segments of which a copy is to be kept in `damaged/`.
    pub(crate) damaged: Vec<u64>,
}

pub(crate) fn recover(storage: &dyn Storage) -> Result<Recovered, Error> {
    let (files, unfinished) = list(storage)?;
    let marked = is_marked(storage, !files.is_empty())?;
    let open = |number| storage.open(&format::segment_file(number));
    let mut ends: Vec<Ends> = Vec::with_capacity(files.len());
    for (index, (number, disk)) in files.iter().enumerate() {
        let newest = index + 1 == files.len();
        let found = match open(*number) {
            Err(error) if is_damage(&error) => Ends::unknown(*number, *disk),
            opened => {
                let file = opened.at("open", &format::segment_file(*number))?;
                Ends::read(&*file, *number, newest, ends.last())?
            }
        };
        ends.push(found);
    }
    if !marked && files.is_empty() && Ledger::is_foreign(storage).at("read", format::STATE_FILE)? {
        return Err(Error::NotASpool {
            file: format::STATE_FILE.to_owned(),
        });
    }
    let newer = Ledger::newer_version(storage).at("read", format::STATE_FILE)?;
    if let Some(found) = newer {
        return Err(Error::UnsupportedFormat {
            file: format::STATE_FILE.to_owned(),
            found,
            supported: format::VERSION,
        });
    }
    // Nothing was changed so far; now it is known to be ours.
    if !marked {
        write_marker(storage).at("write", format::MARKER_FILE)?;
    }
    for file in unfinished {
        storage.remove(&file).at("remove", &file)?;
    }
    // Names that were found may not be durable yet: whoever made them may have
    // been killed, or told of an error, before they were.
    sync_dir(storage, "").at("sync", &storage.name())?;
    let ledger = Ledger::open(storage).at("open", format::STATE_FILE)?;

    let contents = ledger.contents();
    let known = Known {
        contents,
        trusted: ledger.trusted,
        forgotten: ledger.forgotten,
        newest: contents.newest(),
    };
    let found = survey(&ends, known, &open)?;
    for read in &found.read {
        let scan = &read.scan;
        let known_closed = scan.closed && contents.synced == (read.number, scan.last);
        if !known_closed {
            let name = format::segment_file(read.number);
            let file = open(read.number).at("open", &name)?;
            make_durable(&*file, read.seed, read.first, scan).at("make durable", &name)?;
        }
    }
    finish(storage, found, ledger)
}

/// Writes down what was lost and settles where appending goes on.
fn finish(storage: &dyn Storage, found: Survey, mut ledger: Ledger) -> Result<Recovered, Error> {
    let mut contents = ledger.contents().clone();
    let done = contents.cursor;
    contents.cursor = found.cursor;
    let named = contents.clone();
    if ledger.forgotten && !found.segments.is_empty() {
        tracing::warn!(
            "the state file can't be read: what was delivered and is still there will be \
             delivered again, and losses that nobody confirmed are forgotten"
        );
        contents.add(Reason::Several, NO_STREAM, 0, 0, 0, 0);
    }
    for lost in &found.lost {
        let (stream, last) = (lost.stream, lost.last);
        // Up to the cursor all was delivered, or named already.
        let first = match stream == done.stream {
            true => lost.first.max(done.sequence + 1),
            false => lost.first,
        };
        if first > last {
            continue;
        }
        tracing::warn!(%stream, first, last, "records that were durable are damaged or missing");
        contents.lose(Reason::Damaged, stream, first, last, 0);
    }
    for doubt in &found.doubt {
        let (stream, from) = (doubt.stream, doubt.from);
        if !contents.doubts(stream, from) {
            tracing::warn!(%stream, from, "what was stored from here on can't be known");
            contents.add(Reason::Damaged, stream, from, from, 0, 0);
        }
    }
    if ledger.to_mend {
        ledger
            .mend(storage, contents)
            .at("write", format::STATE_FILE)?;
    } else if contents.same_losses(&named) {
        ledger.assume(contents);
    } else {
        ledger
            .commit_both(contents)
            .at("write", format::STATE_FILE)?;
    }

    let newest = found.segments.back().map_or(0, |segment| segment.number);
    let tail = found.tail;
    let mut recovered = Recovered {
        next_segment: newest.max(ledger.contents().newest()).saturating_add(1),
        segments: found.segments,
        ledger,
        stream: tail.stream,
        predecessor: tail.predecessor,
        before: tail.ended,
        ended: found.ended,
        next_sequence: tail.last + 1,
        start: tail.start,
        damaged: found.damaged,
    };
    if tail.end.is_some() || tail.stream == NO_STREAM {
        let end = tail
            .end
            .filter(|_| tail.last > 0 && tail.stream != NO_STREAM);
        // A stream that kept no record leaves no trace: its predecessor stays.
        let before = end.map(|end| Predecessor {
            stream: tail.stream,
            last_sequence: tail.last,
            end,
        });
        recovered.begin_stream(before)?;
    }
    Ok(recovered)
}

impl Recovered {
    fn begin_stream(&mut self, before: Option<Predecessor>) -> Result<(), Error> {
        let mut id = [0; 16];
        getrandom::fill(&mut id).map_err(Error::Randomness)?;
        if let Some(before) = before {
            let ended = Ended {
                stream: before.stream,
                last: before.last_sequence,
                segment: self.next_segment.saturating_sub(1),
            };
            self.before.insert(0, ended);
            self.before.truncate(ENDED_KEPT);
            self.ended.push(ended);
            self.predecessor = Some(before);
        }
        self.stream = StreamId(id);
        self.next_sequence = 1;
        Ok(())
    }
}

/// The segments that are there, oldest first, with their lengths; and what
/// creating one has left unfinished.
#[expect(clippy::type_complexity, reason = "two lists")]
fn list(storage: &dyn Storage) -> Result<(Vec<(u64, u64)>, Vec<String>), Error> {
    let mut segments = Vec::new();
    let mut unfinished = Vec::new();
    for (file, len) in storage.list("").at("list", &storage.name())? {
        if let Some(number) = format::segment_number(&file) {
            if number >= format::LAST_SEGMENT {
                return Err(Error::NotASpool { file });
            }
            segments.push((number, len));
        } else if format::is_unfinished(&file) {
            unfinished.push(file);
        }
    }
    segments.sort_unstable();
    Ok((segments, unfinished))
}

/// Whether the marker file is as it should be. If not, the spool is new, or the
/// file is damaged.
fn is_marked(storage: &dyn Storage, has_segments: bool) -> Result<bool, Error> {
    let name = format::MARKER_FILE;
    let file = storage.open(name).at("open", name)?;
    let len = file.size().at("read", name)?;
    let mut bytes = [0; format::MARKER_LEN];
    if len >= format::MARKER_LEN as u64 {
        read_salvaging(&*file, &mut bytes, 0);
    }
    match format::check_marker(&bytes) {
        Checked::Good(()) => Ok(true),
        Checked::Newer(found) => Err(Error::UnsupportedFormat {
            file: name.to_owned(),
            found,
            supported: format::VERSION,
        }),
        Checked::Bad if len > format::MARKER_LEN as u64 && !has_segments => Err(Error::NotASpool {
            file: name.to_owned(),
        }),
        Checked::Bad => Ok(false),
    }
}

fn write_marker(storage: &dyn Storage) -> io::Result<()> {
    let file = storage.open(format::MARKER_FILE)?;
    file.set_len(format::MARKER_LEN as u64)?;
    file.write_at(&format::marker(), 0)?;
    sync(&*file)
}
