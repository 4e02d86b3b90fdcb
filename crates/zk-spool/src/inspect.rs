//! Looking at a spool from outside, while another process may have it open.

use std::{
    fs::{self, File, OpenOptions},
    io,
    ops::ControlFlow,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use rustix::fs::OFlags;

use crate::{
    Damage, Engine, Error, Loss, Position, Record, Report, StreamId,
    drain::examine,
    error::At,
    format::{self, Checked, FRAMES_AT, MARKER_FILE, MARKER_LEN, STATE_FILE, Seed},
    ledger::{Contents, Cursor, SLOT},
    rejected,
    segment::{Segment, header_copies, read_sealed, scan},
    spool::engine_in,
    walk::{CHUNK, Step, Walk, read_salvaging},
};

/// What the files of a spool said when [`inspect`] read them.
///
/// It is a snapshot of a log that may be written to and drained meanwhile: what
/// was appended or acknowledged during the look may be in it or not, and records
/// that are not durable yet are in it.
#[derive(Debug)]
#[non_exhaustive]
pub struct Inspection {
    /// The newest stream and its newest number, 0 if it has no record; `None` if
    /// nothing was ever appended, or the newest segment can't be read.
    pub newest: Option<(StreamId, u64)>,
    /// The oldest record that waits: its stream and number.
    pub oldest: Option<(StreamId, u64)>,
    /// Records that wait.
    pub records: u64,
    /// Bytes that wait, with their framing.
    pub bytes: u64,
    /// Bytes that all segments take on disk; this is what the cap bounds.
    pub disk_bytes: u64,
    /// Segment files.
    pub segments: usize,
    /// Segment files of which nothing can be read. The next opening says what
    /// is lost with them.
    pub unreadable: usize,
    /// The last record acknowledged: its stream and number.
    pub acked: Option<(StreamId, u64)>,
    /// Losses that wait to be confirmed, by ascending id.
    pub losses: Vec<Loss>,
    /// Records that the receiver refused and that are kept in `rejected/`.
    pub rejected: usize,
    /// Bytes of those.
    pub rejected_bytes: u64,
    pub(crate) directory: PathBuf,
    log: Vec<Segment>,
    /// Segments of which nothing can be read, and their lengths.
    opaque: Vec<(u64, u64)>,
    cursor: Cursor,
    marked: bool,
    /// A segment that should be there, newer than those that are.
    gone: Option<u64>,
}

/// Reads what is in a spool's directory without locking, changing or repairing
/// anything; `None` if there is no spool.
///
/// Whoever may read the files can do this, and whoever has the spool open is not
/// disturbed. Only the newest segment is read whole.
///
/// # Errors
///
/// [`Error::UnsupportedFormat`]: a newer program wrote it.
/// [`Error::NotInspectable`]: its engine is `sled`. [`Error::Io`]: a file can't be
/// read.
pub fn inspect(directory: impl AsRef<Path>) -> Result<Option<Inspection>, Error> {
    let directory = directory.as_ref();
    let marked = is_marked(directory)?;
    let name = directory.display().to_string();
    if let Some(engine) = engine_in(directory, Engine::Log).at("list", &name)? {
        return Err(Error::NotInspectable { dir: name, engine });
    }
    let known = state(directory)?.synced.0;
    // The segments first, the cursor last: what is acknowledged in between then
    // counts as done.
    let files = segments(directory)?;
    if !marked && files.is_empty() {
        return Ok(None);
    }
    let mut found = Inspection {
        newest: None,
        oldest: None,
        records: 0,
        bytes: 0,
        disk_bytes: 0,
        segments: 0,
        unreadable: 0,
        acked: None,
        losses: Vec::new(),
        rejected: 0,
        rejected_bytes: 0,
        directory: directory.to_owned(),
        log: Vec::new(),
        opaque: Vec::new(),
        cursor: Cursor::default(),
        marked,
        gone: (files.last().copied().unwrap_or(0) < known).then_some(known),
    };
    let synced = state(directory)?.synced;
    for number in files {
        let Some(file) = open(directory, &format::segment_file(number))? else {
            continue;
        };
        let disk = file
            .metadata()
            .at("read", &format::segment_file(number))?
            .len();
        found.segments += 1;
        found.disk_bytes = found.disk_bytes.saturating_add(disk);
        let segment = read(&file, number, disk, synced)?;
        if segment.is_none() {
            found.unreadable += 1;
            found.opaque.push((number, disk));
        }
        found.newest = segment.map(|segment| (segment.stream, segment.last));
        found.log.extend(segment);
    }
    let contents = state(directory)?;
    found.cursor = contents.cursor;
    found.acked =
        (found.cursor.sequence > 0).then_some((found.cursor.stream, found.cursor.sequence));
    found.losses = contents.open_losses().collect();
    found.losses.sort_unstable_by_key(|loss| loss.id);
    for (_, bytes) in rejected::files(directory)? {
        found.rejected += 1;
        found.rejected_bytes = found.rejected_bytes.saturating_add(bytes);
    }
    for segment in &found.log {
        let Some(first) = found.waits_from(segment) else {
            continue;
        };
        found.oldest = found.oldest.or(Some((segment.stream, first)));
        // Files that somebody made up may say more than there can be.
        found.records = found.records.saturating_add(segment.last - first + 1);
        let bytes = segment.end.saturating_sub(found.offset(segment));
        found.bytes = found.bytes.saturating_add(bytes);
    }
    Ok(Some(found))
}

impl Inspection {
    /// Shows the records that wait, oldest first, until told to stop. Damaged
    /// ones, and those that were drained since, are left out.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn visit(&self, mut see: impl FnMut(Record) -> ControlFlow<()>) -> Result<(), Error> {
        for segment in &self.log {
            if self.visit_segment(segment, &mut see)?.is_break() {
                break;
            }
        }
        Ok(())
    }

    /// The newest of the records that wait. Only its segment is read.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn newest_record(&self) -> Result<Option<Record>, Error> {
        let mut newest = None;
        for segment in self.log.iter().rev() {
            let _goes_on = self.visit_segment(segment, &mut |record| {
                newest = Some(record);
                ControlFlow::Continue(())
            })?;
            if newest.is_some() {
                break;
            }
        }
        Ok(newest)
    }

    /// Reads all that is there, records that were delivered included, and reports
    /// what is not as it was written. Nothing is changed or written down, so that
    /// whoever has the spool open comes upon the same damage when reading gets
    /// there, and names it as lost then.
    ///
    /// `progress` is shown what was read after each segment.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn verify(&self, mut progress: impl FnMut(&Report)) -> Result<Report, Error> {
        let mut report = Report::default();
        if !self.marked {
            report.damage.push(Damage {
                file: MARKER_FILE.to_owned(),
                offset: 0,
                bytes: MARKER_LEN as u64,
                lost: None,
            });
        }
        self.verify_state(&mut report)?;
        let missing = |number: u64, lost| Damage {
            file: format::segment_file(number),
            offset: 0,
            bytes: 0,
            lost,
        };
        let mut before: Option<(u64, StreamId, u64)> = Some(self.cursor)
            .filter(|cursor| cursor.segment > 0)
            .map(|cursor| (cursor.segment, cursor.stream, cursor.sequence));
        for segment in &self.log {
            if let Some((number, stream, last)) = before
                && number < segment.number
                // One that can't be read stands between them.
                && !self.opaque.iter().any(|(opaque, _)| (number..segment.number).contains(opaque))
                && let Some(lost) = self.missing_before(segment, stream, last)?
            {
                report.damage.push(missing(segment.number - 1, Some(lost)));
            }
            if before.is_none_or(|(number, ..)| number <= segment.number) {
                before = Some((segment.number, segment.stream, segment.last));
            }
            self.verify_segment(*segment, &mut report)?;
            progress(&report);
        }
        for (number, disk) in &self.opaque {
            report.damage.push(Damage {
                bytes: *disk,
                ..missing(*number, None)
            });
        }
        report
            .damage
            .extend(self.gone.map(|number| missing(number, None)));
        Ok(report)
    }

    /// The records that should stand between one of this place and a segment.
    fn missing_before(
        &self,
        segment: &Segment,
        stream: StreamId,
        last: u64,
    ) -> Result<Option<(StreamId, u64, u64)>, Error> {
        let (stream, after, until) = if stream == segment.stream {
            (stream, last, segment.first - 1)
        } else {
            let Some(file) = open(&self.directory, &segment.file())? else {
                return Ok(None);
            };
            let copies = header_copies(&file, segment.number, segment.disk);
            let Some(before) = copies
                .into_iter()
                .find_map(Checked::good)
                .and_then(|header| header.predecessor)
            else {
                return Ok(None);
            };
            let after = if before.stream == stream { last } else { 0 };
            (before.stream, after, before.last_sequence)
        };
        Ok((until > after).then_some((stream, after + 1, until)))
    }

    /// One that is being appended to may be caught half-way, so that what is
    /// wrong with it must be so in each of several looks.
    fn verify_segment(&self, mut segment: Segment, report: &mut Report) -> Result<(), Error> {
        for look in 1.. {
            let Some(file) = open(&self.directory, &segment.file())? else {
                // Drained meanwhile.
                break;
            };
            let newest = self.log.last().map_or(0, |segment| segment.number);
            let mut seen = Report::default();
            examine(&segment, &file, newest, &mut seen);
            let again = if seen.damage.is_empty() || segment.number < newest || look == 3 {
                None
            } else {
                let disk = file.metadata().at("read", &segment.file())?.len();
                let synced = state(&self.directory)?.synced;
                read(&file, segment.number, disk, synced)?
            };
            let Some(again) = again else {
                report.segments += seen.segments;
                report.records += seen.records;
                report.bytes = report.bytes.saturating_add(seen.bytes);
                report.damage.append(&mut seen.damage);
                break;
            };
            segment = again;
        }
        Ok(())
    }

    /// Both slots are written when the file is made, so that each has to be right;
    /// one of them may be written to at this moment.
    fn verify_state(&self, report: &mut Report) -> Result<(), Error> {
        let mut bad = [true; 2];
        for _ in 0..LOOKS {
            let Some(slots) = read_slots(&self.directory)? else {
                // It is made with the first segment at the latest.
                bad = [!self.log.is_empty(); 2];
                break;
            };
            let mut newest = 0;
            let mut unwritten = [false; 2];
            for (at, slot) in slots.chunks(SLOT).enumerate() {
                unwritten[at] = slot.iter().all(|byte| *byte == 0);
                if let Checked::Good((generation, _)) = Contents::from_slot(slot) {
                    newest = newest.max(generation);
                    bad[at] = false;
                }
            }
            // It may be made at this moment: first the one of the odd generation.
            let is_made = self.log.is_empty() && self.opaque.is_empty();
            bad[0] &= !(unwritten[0] && (newest == 1 || newest == 0 && is_made));
            bad[1] &= !(unwritten[1] && newest == 0 && is_made);
            if bad == [false; 2] {
                break;
            }
        }
        for (slot, _) in bad.into_iter().enumerate().filter(|(_, bad)| *bad) {
            report.damage.push(Damage {
                file: STATE_FILE.to_owned(),
                offset: (slot * SLOT) as u64,
                bytes: SLOT as u64,
                lost: None,
            });
        }
        Ok(())
    }

    fn visit_segment(
        &self,
        segment: &Segment,
        see: &mut impl FnMut(Record) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, Error> {
        let Some(first) = self.waits_from(segment) else {
            return Ok(ControlFlow::Continue(()));
        };
        let Some(file) = open(&self.directory, &segment.file())? else {
            return Ok(ControlFlow::Continue(()));
        };
        let place = self.offset(segment)..segment.end;
        let sequences = (first, segment.last);
        let mut walk = Walk::new(&file, segment.seed(), place, sequences, CHUNK);
        loop {
            let frame = match walk.step() {
                Step::Frame(frame) => frame,
                Step::Gap(_) => continue,
                Step::End => return Ok(ControlFlow::Continue(())),
            };
            let body = walk.bytes(&frame);
            let places = format::records(frame.header.count, body);
            for (sequence, place) in (frame.header.first..).zip(places) {
                if !(first..=segment.last).contains(&sequence) {
                    continue;
                }
                let position = Position {
                    stream: segment.stream,
                    sequence,
                    segment: segment.number,
                    resume: frame.offset,
                };
                let bytes = body[place].to_vec();
                if see(Record { position, bytes }).is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
        }
    }

    /// The first number of a segment that is not done.
    fn waits_from(&self, segment: &Segment) -> Option<u64> {
        let first = match segment.number.cmp(&self.cursor.segment) {
            std::cmp::Ordering::Less => return None,
            std::cmp::Ordering::Equal => segment.first.max(self.cursor.sequence + 1),
            std::cmp::Ordering::Greater => segment.first,
        };
        (first <= segment.last).then_some(first)
    }

    /// Where in a segment reading begins.
    fn offset(&self, segment: &Segment) -> u64 {
        if segment.number == self.cursor.segment {
            self.cursor.offset.max(FRAMES_AT)
        } else {
            FRAMES_AT
        }
    }
}

/// `None`: neither end tells what it is.
fn read(file: &File, number: u64, disk: u64, synced: (u64, u64)) -> Result<Option<Segment>, Error> {
    if let Some(sealed) = read_sealed(file, number, disk) {
        return Ok(Some(Segment::sealed(number, sealed, disk)));
    }
    let mut header = None;
    for copy in header_copies(file, number, disk) {
        match copy {
            Checked::Good(good) => header = header.or(Some(good)),
            Checked::Newer(found) => return Err(newer(&format::segment_file(number), found)),
            Checked::Bad => {}
        }
    }
    let Some(header) = header else {
        return Ok(None);
    };
    let synced = if synced.0 == number { synced.1 } else { 0 };
    let seed = Seed::new(number, header.stream);
    let scan = scan(file, seed, disk, header.first, synced);
    Ok(Some(match scan.sealed {
        Some(sealed) => Segment::sealed(number, sealed, disk),
        None => Segment::durable(
            number,
            header.stream,
            header.first,
            scan.last,
            scan.end,
            disk,
        ),
    }))
}

/// The state file's newest slot that is whole; the other one may be written at
/// this moment.
fn state(directory: &Path) -> Result<Contents, Error> {
    // Each may be written at the moment that it is read. Only a damaged file never
    // has a whole one.
    for _ in 0..LOOKS {
        let Some(slots) = read_slots(directory)? else {
            break;
        };
        let mut newest = None;
        for slot in slots.chunks(SLOT) {
            match Contents::from_slot(slot) {
                Checked::Good(slot) if newest.as_ref().is_none_or(|(at, _)| slot.0 > *at) => {
                    newest = Some(slot);
                }
                Checked::Newer(found) => return Err(newer(STATE_FILE, found)),
                Checked::Good(_) | Checked::Bad => {}
            }
        }
        if let Some((_, contents)) = newest {
            return Ok(contents);
        }
    }
    Ok(Contents::default())
}

/// Both slots of the state file; `None` if there is no such file.
fn read_slots(directory: &Path) -> Result<Option<Vec<u8>>, Error> {
    let Some(file) = open(directory, STATE_FILE)? else {
        return Ok(None);
    };
    let mut slots = vec![0; 2 * SLOT];
    let present = file.metadata().at("read", STATE_FILE)?.len();
    let present = slots.len().min(usize::try_from(present).unwrap_or(0));
    read_salvaging(&file, &mut slots[..present], 0);
    Ok(Some(slots))
}

pub(crate) fn is_marked(directory: &Path) -> Result<bool, Error> {
    let Some(file) = open(directory, MARKER_FILE)? else {
        return Ok(false);
    };
    let mut bytes = [0; MARKER_LEN];
    if read_salvaging(&file, &mut bytes, 0) {
        return Ok(false);
    }
    match format::check_marker(&bytes) {
        Checked::Good(()) => Ok(true),
        Checked::Newer(found) => Err(newer(MARKER_FILE, found)),
        Checked::Bad => Ok(false),
    }
}

/// The numbers of the segments, ascending.
fn segments(directory: &Path) -> Result<Vec<u64>, Error> {
    let list = || -> io::Result<Vec<u64>> {
        let entries = match fs::read_dir(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut numbers = Vec::new();
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name().into_string().unwrap_or_default();
            if entry.file_type()?.is_file() {
                numbers.extend(format::segment_number(&name));
            }
        }
        numbers.sort_unstable();
        Ok(numbers)
    };
    list().at("list", &directory.display().to_string())
}

/// `None`: it is not there, or not any more, or is no file.
fn open(directory: &Path, name: &str) -> Result<Option<File>, Error> {
    let mut options = OpenOptions::new();
    // A pipe would be waited for.
    let flags = OFlags::NONBLOCK | OFlags::NOFOLLOW;
    options.read(true).custom_flags(flags.bits() as i32);
    match options.open(directory.join(name)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        file => {
            let file = file.at("open", name)?;
            let is_file = file.metadata().at("read", name)?.is_file();
            Ok(is_file.then_some(file))
        }
    }
}

/// How often a slot is looked at that may be written to at the same time.
const LOOKS: u32 = 20;

fn newer(file: &str, found: u32) -> Error {
    Error::UnsupportedFormat {
        file: file.to_owned(),
        found,
        supported: format::VERSION,
    }
}
