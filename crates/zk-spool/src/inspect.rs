//! Looking at a spool from outside, while another process may have it open.

use std::{
    fs::{self, File, OpenOptions},
    io,
    ops::ControlFlow,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::fs::OFlags;

use crate::{
    Damage, Engine, Error, Loss, Position, Record, Report, StreamId,
    drain::examine,
    error::At,
    format::{self, Checked, FRAMES_AT, MARKER_FILE, MARKER_LEN, STATE_FILE},
    ledger::{Contents, SLOT},
    rejected,
    segment::{Ends, Segment, scan},
    spool::{engine_in, length},
    storage::StorageFile,
    survey::{Known, Survey, survey},
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
    /// Records that wait. Damaged ones count until reading has come to them.
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
    log: Survey,
    marked: bool,
}

/// Reads what is in a spool's directory without locking, changing or repairing
/// anything; `None` if there is no spool.
///
/// Whoever may read the files can do this, and whoever has the spool open is not
/// disturbed. Only the newest segment is read whole, and one that lost its end.
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
    let Some((contents, log)) = look(directory, marked)? else {
        return Ok(None);
    };
    let newest = log.segments.back();
    let mut found = Inspection {
        newest: newest
            .filter(|newest| !log.opaque.contains(&newest.number))
            .map(|newest| (newest.stream, newest.last)),
        oldest: None,
        records: 0,
        bytes: 0,
        disk_bytes: length(&log.segments),
        segments: log.segments.len(),
        unreadable: log.opaque.len(),
        acked: (log.cursor.sequence > 0).then_some((log.cursor.stream, log.cursor.sequence)),
        losses: contents.open_losses().collect(),
        rejected: 0,
        rejected_bytes: 0,
        directory: directory.to_owned(),
        log,
        marked,
    };
    found.losses.sort_unstable_by_key(|loss| loss.id);
    for (_, bytes) in rejected::files(directory)? {
        found.rejected += 1;
        found.rejected_bytes = found.rejected_bytes.saturating_add(bytes);
    }
    for segment in &found.log.segments {
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
        for segment in &self.log.segments {
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
        for segment in self.log.segments.iter().rev() {
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
        for segment in &self.log.segments {
            let number = segment.number;
            if self.log.opaque.contains(&number) {
                let lost = self.log.lost.iter().find(|lost| lost.segment == number);
                report.damage.push(Damage {
                    file: segment.file(),
                    offset: 0,
                    bytes: segment.disk,
                    lost: lost.map(|lost| (lost.stream, lost.first, lost.last)),
                });
            } else {
                self.verify_segment(*segment, &mut report)?;
            }
            progress(&report);
        }
        // What is not there can't be read.
        let missing = |number, offset, lost| Damage {
            file: format::segment_file(number),
            offset,
            bytes: 0,
            lost,
        };
        for lost in self.log.lost.iter().filter(|lost| lost.gone) {
            let lost_there = Some((lost.stream, lost.first, lost.last));
            report.damage.push(missing(lost.segment, 0, lost_there));
        }
        for doubt in &self.log.doubt {
            if !self.log.opaque.contains(&doubt.segment) {
                let mut segments = self.log.segments.iter();
                let there = segments.find(|segment| segment.number == doubt.segment);
                let end = there.map_or(0, |segment| segment.end);
                report.damage.push(missing(doubt.segment, end, None));
            }
        }
        Ok(report)
    }

    /// One that is being appended to may be caught half-way, so that what is
    /// wrong with it must be so in each of several looks.
    fn verify_segment(&self, mut segment: Segment, report: &mut Report) -> Result<(), Error> {
        for look in 1.. {
            let Some(file) = open(&self.directory, &segment.file())? else {
                // Drained meanwhile.
                break;
            };
            let newest = self.log.segments.back().map_or(0, |newest| newest.number);
            let mut seen = Report::default();
            examine(&segment, &file, newest, &mut seen);
            let again = if seen.damage.is_empty() || segment.number < newest || look == 3 {
                None
            } else {
                let disk = file.metadata().at("read", &segment.file())?.len();
                let synced = state(&self.directory)?.0.synced;
                let synced = if synced.0 == segment.number {
                    synced.1
                } else {
                    0
                };
                let Segment {
                    number,
                    stream,
                    first,
                    ..
                } = segment;
                let found = scan(&file, segment.seed(), disk, first, synced);
                Some(Segment::scanned(number, stream, first, &found, disk))
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
                bad = [!self.log.segments.is_empty(); 2];
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
            let is_made = self.log.segments.is_empty();
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
        let cursor = &self.log.cursor;
        let first = match segment.number.cmp(&cursor.segment) {
            std::cmp::Ordering::Less => return None,
            std::cmp::Ordering::Equal => segment.first.max(cursor.sequence + 1),
            std::cmp::Ordering::Greater => segment.first,
        };
        (first <= segment.last).then_some(first)
    }

    /// Where in a segment reading begins.
    fn offset(&self, segment: &Segment) -> u64 {
        if segment.number == self.log.cursor.segment {
            self.log.cursor.offset.max(FRAMES_AT)
        } else {
            FRAMES_AT
        }
    }
}

/// What is there; `None` if it is no spool. It may be written to and drained meanwhile.
fn look(directory: &Path, marked: bool) -> Result<Option<(Contents, Survey)>, Error> {
    for look in 1.. {
        let before = state(directory)?.0.newest();
        // The segments first, the cursor last: what is acknowledged in between then
        // counts as done.
        let files = segments(directory)?;
        if !marked && files.is_empty() {
            return Ok(None);
        }
        let listed = files.last().copied().unwrap_or(0);
        let mut ends: Vec<Ends> = Vec::with_capacity(files.len());
        let mut last = None;
        for number in files {
            let Some(file) = open(directory, &format::segment_file(number))? else {
                continue;
            };
            let found = Ends::read(&file, number, number == listed, ends.last())?;
            ends.push(found);
            last = Some(Arc::new(file));
        }
        let newest = ends.last().map_or(0, |ends| ends.number);
        let (mut contents, good) = state(directory)?;
        // Newer ones came since, or the newest was drained.
        let is_old = before <= listed && contents.newest() > newest;
        if is_old && look < LOOKS {
            continue;
        }
        if is_old {
            contents.synced = contents.synced.min((newest, u64::MAX));
        }
        let known = Known {
            contents: &contents,
            trusted: good == 2,
            forgotten: good == 0,
            newest: if is_old { newest } else { before },
        };
        let open = |number: u64| -> io::Result<Arc<dyn StorageFile>> {
            match &last {
                // It may be drained meanwhile.
                Some(file) if number == newest => Ok(Arc::clone(file) as Arc<dyn StorageFile>),
                _ => Ok(Arc::new(open_file(
                    directory,
                    &format::segment_file(number),
                )?)),
            }
        };
        let found = survey(&ends, known, &open)?;
        return Ok(Some((contents, found)));
    }
    Ok(None)
}

/// The state file's newest slot that is whole, and how many are; the other one may be
/// written at this moment.
fn state(directory: &Path) -> Result<(Contents, usize), Error> {
    // Each may be written at the moment that it is read. Only a damaged file never
    // has a whole one.
    let mut best = None;
    for _ in 0..LOOKS {
        let Some(slots) = read_slots(directory)? else {
            break;
        };
        let mut newest: Option<(u64, Contents)> = None;
        let mut good = 0;
        for slot in slots.chunks(SLOT) {
            match Contents::from_slot(slot) {
                Checked::Newer(found) => return Err(newer(STATE_FILE, found)),
                Checked::Bad => {}
                Checked::Good(slot) => {
                    good += 1;
                    if newest.as_ref().is_none_or(|(at, _)| slot.0 > *at) {
                        newest = Some(slot);
                    }
                }
            }
        }
        if let Some((_, contents)) = newest {
            best = Some((contents, good));
            if good == 2 {
                break;
            }
        }
    }
    Ok(best.unwrap_or_default())
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

fn open_file(directory: &Path, name: &str) -> io::Result<File> {
    let mut options = OpenOptions::new();
    // A pipe would be waited for.
    let flags = OFlags::NONBLOCK | OFlags::NOFOLLOW;
    options.read(true).custom_flags(flags.bits() as i32);
    options.open(directory.join(name))
}

/// `None`: it is not there, or not any more, or is no file.
fn open(directory: &Path, name: &str) -> Result<Option<File>, Error> {
    match open_file(directory, name) {
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
