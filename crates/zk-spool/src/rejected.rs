//! The records that the receiver refused for good, as [`Spool::reject`] has put
//! them aside.
//!
//! [`Spool::reject`]: crate::Spool::reject

use std::{
    fs::{self, OpenOptions},
    io::{self, Read},
    ops::ControlFlow,
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use rustix::fs::OFlags;

use crate::{
    Error, Inspection, MAX_RECORD, Position, Record, StreamId,
    error::At,
    format::{MARKER_FILE, REJECTED_DIR},
    inspect::is_marked,
    storage::{Directory, Lock, Storage, is_damage, sync_dir},
};

/// The right to take refused records away: while it lives, nobody else has the
/// spool open.
///
/// The records themselves are read with
/// [`visit_rejected`](Inspection::visit_rejected), for which nothing is locked.
/// Each of them was named as a loss when it was put aside; taking it away changes
/// nothing about that.
#[derive(Debug)]
pub struct Rejected {
    storage: Directory,
    _lock: Locked,
}

/// As `Lock`, which shows nothing.
struct Locked(#[allow(dead_code, reason = "held")] Lock);

impl std::fmt::Debug for Locked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Locked")
    }
}

impl Rejected {
    /// Locks a spool, without opening or recovering it; `None` if there is none.
    ///
    /// # Errors
    ///
    /// [`Error::Locked`]: somebody has it open. [`Error::UnsupportedFormat`]: a
    /// newer program wrote it. [`Error::Io`].
    pub fn lock(directory: impl AsRef<Path>) -> Result<Option<Self>, Error> {
        let directory = directory.as_ref();
        // Locking would make the file, and with it a spool.
        if !is_marked(directory)? {
            return Ok(None);
        }
        let name = directory.display().to_string();
        let storage = Directory::new(directory).at("open the directory", &name)?;
        let lock = storage
            .lock(MARKER_FILE)
            .at("lock", MARKER_FILE)?
            .ok_or_else(|| Error::Locked {
                dir: storage.name(),
                holder: storage.lock_holder(MARKER_FILE),
            })?;
        Ok(Some(Self {
            storage,
            _lock: Locked(lock),
        }))
    }

    /// Takes a refused record away, durably.
    ///
    /// # Errors
    ///
    /// [`Error::Io`], also if it is not there.
    pub fn remove(&self, position: Position) -> Result<(), Error> {
        let name = file_name(position);
        self.storage.remove(&name).at("remove", &name)?;
        sync_dir(&self.storage, REJECTED_DIR).at("make its removal durable", &name)
    }
}

impl Inspection {
    /// Shows the records that the receiver refused and that are kept, oldest
    /// first, until told to stop. What the spool has removed since to make room
    /// is left out. What the medium doesn't give any more, and what is larger than
    /// a record can be, is shown without its bytes, so that it can be
    /// [removed](Rejected::remove), too.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn visit_rejected(
        &self,
        mut see: impl FnMut(Record) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        for (position, _) in files(&self.directory)? {
            let name = file_name(position);
            let bytes = match read(&self.directory.join(&name)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) if is_damage(&error) => Vec::new(),
                bytes => bytes.at("read", &name)?,
            };
            if see(Record { position, bytes }).is_break() {
                break;
            }
        }
        Ok(())
    }
}

/// The name of the file that holds a refused record, below the spool's directory.
pub(crate) fn file_name(position: Position) -> String {
    let Position {
        stream,
        sequence,
        segment,
        ..
    } = position;
    format!("{REJECTED_DIR}/{segment:020}-{sequence:020}-{stream}.rec")
}

/// Where the refused records stood that are kept, oldest first, and their sizes.
pub(crate) fn files(directory: &Path) -> Result<Vec<(Position, u64)>, Error> {
    let list = || -> io::Result<Vec<(Position, u64)>> {
        let path = directory.join(REJECTED_DIR);
        // Where a link leads to, the spool has put nothing.
        if path.is_symlink() {
            return Ok(Vec::new());
        }
        let entries = match fs::read_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut files = Vec::new();
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name().into_string().unwrap_or_default();
            let metadata = match entry.metadata() {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                metadata => metadata?,
            };
            if let Some(position) = position(&name).filter(|_| metadata.is_file()) {
                files.push((position, metadata.len()));
            }
        }
        files.sort_unstable_by_key(|(position, _)| (position.segment, position.sequence));
        Ok(files)
    };
    list().at("list", REJECTED_DIR)
}

/// What the name of a file in `rejected/` says; `None`: it is none of the spool's.
pub(crate) fn position(name: &str) -> Option<Position> {
    let (segment, rest) = name.strip_suffix(".rec")?.split_once('-')?;
    let (sequence, stream) = rest.split_once('-')?;
    let mut id = StreamId([0; 16]);
    for (at, byte) in id.0.iter_mut().enumerate() {
        *byte = u8::from_str_radix(stream.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    let position = Position {
        stream: id,
        sequence: sequence.parse().ok()?,
        segment: segment.parse().ok()?,
        resume: 0,
    };
    // There is one way to write it.
    (file_name(position)
        .strip_prefix(REJECTED_DIR)?
        .strip_prefix('/')?
        == name)
        .then_some(position)
}

/// Nothing, if it is larger than a record can be.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    // A link leads to what is not the spool's, and a pipe may never end.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits() as i32)
        .open(path)?;
    let mut bytes = Vec::new();
    file.take(MAX_RECORD as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > MAX_RECORD {
        bytes.clear();
    }
    Ok(bytes)
}
