use std::io;

use crate::{
    StreamId,
    error::{At, Error},
    format::{self, Checked, FRAMES_AT, HEADER_COPY, Header, SEALED_FRAME, Sealed, Seed},
    storage::{StorageFile, sync},
    walk::{CHUNK, Gap, Step, Walk, read_salvaging},
};

/// What is known of a segment file without reading its records.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment {
    pub(crate) number: u64,
    pub(crate) stream: StreamId,
    /// The sequence of its first record, or of the one it would have.
    pub(crate) first: u64,
    /// The last sequence written to it; `first - 1` if there is none.
    pub(crate) last: u64,
    /// Where its frames end.
    pub(crate) end: u64,
    /// The last sequence that is durable.
    pub(crate) durable_last: u64,
    /// Where the durable frames end.
    pub(crate) durable_end: u64,
    /// The length of the file.
    pub(crate) disk: u64,
    /// Nothing more is appended to it.
    pub(crate) complete: bool,
}

impl Segment {
    pub(crate) fn file(&self) -> String {
        format::segment_file(self.number)
    }

    pub(crate) fn seed(&self) -> Seed {
        Seed::new(self.number, self.stream)
    }

    /// One that was found, durable as it is.
    pub(crate) fn durable(
        number: u64,
        stream: StreamId,
        first: u64,
        last: u64,
        end: u64,
        disk: u64,
    ) -> Self {
        Self {
            number,
            stream,
            first,
            last,
            end,
            durable_last: last,
            durable_end: end,
            disk,
            complete: true,
        }
    }

    /// One that was read to its end.
    pub(crate) fn scanned(
        number: u64,
        stream: StreamId,
        first: u64,
        found: &Scan,
        disk: u64,
    ) -> Self {
        match found.sealed {
            Some(sealed) => Self::sealed(number, Sealed { stream, ..sealed }, disk),
            None => Self::durable(number, stream, first, found.last, found.end, disk),
        }
    }

    pub(crate) fn sealed(number: u64, sealed: Sealed, disk: u64) -> Self {
        let Sealed {
            stream,
            first,
            last,
            end,
            ..
        } = sealed;
        Self::durable(number, stream, first, last, end, disk)
    }
}

/// What the two ends of a segment file say.
#[derive(Debug)]
pub(crate) struct Ends {
    pub(crate) number: u64,
    pub(crate) disk: u64,
    /// Read only where it is needed: of the newest segment, of the first of a
    /// stream, or of the next while that has none, and where `sealed` is missing.
    pub(crate) header: Option<Header>,
    pub(crate) sealed: Option<Sealed>,
    /// Its stream, if that one's header was read, of this segment or of one before.
    told: Option<StreamId>,
}

impl Ends {
    /// Of a segment that can't be opened.
    pub(crate) fn unknown(number: u64, disk: u64) -> Self {
        Self {
            number,
            disk,
            header: None,
            sealed: None,
            told: None,
        }
    }

    /// `before` is the segment before it.
    pub(crate) fn read(
        file: &dyn StorageFile,
        number: u64,
        newest: bool,
        before: Option<&Self>,
    ) -> Result<Self, Error> {
        let name = format::segment_file(number);
        // Not every engine can tell before.
        let disk = file.size().at("read", &name)?;
        let sealed = read_sealed(file, number, disk);
        // What the header of its stream would tell, one before told already.
        let told =
            sealed.is_some_and(|sealed| before.is_some_and(|b| b.told == Some(sealed.stream)));
        let mut header = None;
        if newest || !told {
            for copy in header_copies(file, number, disk) {
                match copy {
                    Checked::Good(good) => header = header.or(Some(good)),
                    Checked::Newer(found) => {
                        return Err(Error::UnsupportedFormat {
                            file: name,
                            found,
                            supported: format::VERSION,
                        });
                    }
                    Checked::Bad => {}
                }
            }
        }
        let mut ends = Self {
            number,
            disk,
            header,
            sealed,
            told: None,
        };
        let stream = ends.start().map(|(stream, _)| stream);
        ends.told = stream.filter(|_| told || ends.header.is_some());
        Ok(ends)
    }

    /// The stream and the first sequence, if either end tells.
    pub(crate) fn start(&self) -> Option<(StreamId, u64)> {
        self.sealed
            .map(|sealed| (sealed.stream, sealed.first))
            .or(self
                .header
                .as_ref()
                .map(|header| (header.stream, header.first)))
    }
}

pub(crate) fn read_sealed(file: &dyn StorageFile, number: u64, disk: u64) -> Option<Sealed> {
    let offset = disk.checked_sub(SEALED_FRAME as u64)?;
    let mut frame = [0; SEALED_FRAME];
    file.read_at(&mut frame, offset).ok()?;
    Sealed::check(&frame, number, offset)
}

/// The copies of the header that the file is long enough for.
pub(crate) fn header_copies(
    file: &dyn StorageFile,
    number: u64,
    disk: u64,
) -> [Checked<Header>; 2] {
    let mut bytes = [0; FRAMES_AT as usize];
    let present = bytes.len().min(usize::try_from(disk).unwrap_or(usize::MAX));
    read_salvaging(file, &mut bytes[..present], 0);
    let (one, two) = bytes.split_at(HEADER_COPY);
    [Header::check(one, number), Header::check(two, number)]
}

/// What a walk over a segment that was not sealed has found.
#[derive(Debug)]
pub(crate) struct Scan {
    /// Where the frames end that count.
    pub(crate) end: u64,
    /// The last sequence that is there, or was durable and is damaged.
    pub(crate) last: u64,
    /// Durable records that are damaged.
    pub(crate) lost: Vec<(u64, u64)>,
    /// Whether anything that was durable is damaged, records or not.
    pub(crate) damaged: bool,
    /// Whether the medium refused to read where the frames end, so that nothing
    /// can be said about what was there.
    pub(crate) doubt: bool,
    /// Whether bytes stand behind the end.
    pub(crate) cut: bool,
    /// Whether the last frame says that the session ended in good order.
    pub(crate) closed: bool,
    /// Whether the last session synced within a window; `None` if not even its
    /// `opened` frame is there.
    pub(crate) windowed: Option<bool>,
    /// A sealed frame that does not end the file.
    pub(crate) sealed: Option<Sealed>,
    /// The last sequence that is known to be durable.
    pub(crate) synced: u64,
}

/// Makes sure that the frames that count are on the medium, not only in memory:
/// after a sync that failed, the system may hold pages for written that are not.
/// So the last frame, and those that are not known to be durable, are written
/// again.
pub(crate) fn make_durable(
    file: &dyn StorageFile,
    seed: Seed,
    first: u64,
    found: &Scan,
) -> io::Result<()> {
    let mut walk = Walk::new(file, seed, FRAMES_AT..found.end, (first, 0), CHUNK);
    let mut last = None;
    let mut known = true;
    loop {
        match walk.step() {
            Step::Frame(frame) => {
                known &= frame.header.next() - 1 <= found.synced;
                // As it was checked: the file may refuse to give it once more.
                let bytes = walk.frame(&frame);
                if known {
                    last = Some((frame.offset, bytes.to_vec()));
                } else {
                    last = None;
                    file.write_at(bytes, frame.offset)?;
                }
            }
            Step::Gap(_) => {}
            Step::End => break,
        }
    }
    if let Some((offset, bytes)) = last {
        file.write_at(&bytes, offset)?;
    }
    sync(file)
}

/// Reads a segment whose end is not known. `synced` is the last sequence that
/// is known from elsewhere to have been durable.
pub(crate) fn scan(file: &dyn StorageFile, seed: Seed, disk: u64, first: u64, synced: u64) -> Scan {
    let mut walk = Walk::new(file, seed, FRAMES_AT..disk, (first, 0), CHUNK);
    let mut found = Scan {
        end: FRAMES_AT.min(disk),
        last: first - 1,
        lost: Vec::new(),
        damaged: false,
        doubt: false,
        cut: false,
        closed: false,
        windowed: None,
        sealed: None,
        synced,
    };
    let mut gaps: Vec<Gap> = Vec::new();
    loop {
        match walk.step() {
            Step::End => break,
            Step::Gap(gap) => {
                found.closed = false;
                gaps.push(gap);
            }
            Step::Frame(frame) => {
                found.closed = false;
                found.synced = found.synced.max(frame.header.synced);
                found.end = frame.end;
                match frame.header.kind {
                    format::Kind::Records => {}
                    format::Kind::Opened => {
                        found.windowed = Some(walk.bytes(&frame)[0] != 0);
                    }
                    format::Kind::Closed => found.closed = true,
                    format::Kind::Sealed => {
                        let sealed = Sealed::from_body(walk.bytes(&frame), frame.offset);
                        // If the stream goes on, it does so behind all that is there.
                        let fits = |sealed: &Sealed| {
                            let goes_on =
                                sealed.end == frame.offset && sealed.last + 1 == walk.expected();
                            sealed.first == first
                                && sealed.last >= synced
                                && (sealed.stream_end.is_some() || goes_on)
                        };
                        found.sealed = sealed.filter(fits);
                        if found.sealed.is_some() {
                            return found;
                        }
                        // No spool wrote that.
                        found.damaged |= sealed.is_some();
                    }
                }
            }
        }
    }
    found.last = walk.expected() - 1;

    for gap in gaps {
        // Beyond what was durable the bytes may be in any state: from the first
        // bad frame on they are cut off.
        let beyond = match gap.next {
            None => true,
            Some(next) => next > gap.expected && next - 1 > found.synced,
        };
        if beyond {
            found.end = gap.offset;
            found.last = gap.expected - 1;
            found.cut = true;
            found.doubt = gap.unreadable;
            break;
        }
        found.lost.extend(gap.missing);
        found.damaged = true;
    }
    if found.last < found.synced {
        found.lost.push((found.last + 1, found.synced));
        found.last = found.synced;
        found.damaged = true;
    }
    found.damaged |= found.doubt || found.windowed.is_none();
    found
}
