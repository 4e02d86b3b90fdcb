use std::{
    collections::BTreeMap,
    fmt, io,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rustix::io::Errno;

use super::{Lock, Storage, StorageFile};

/// Files in memory, which know what a power cut would leave of them.
///
/// Writes reach the medium when the file is synced, names when their directory
/// is; until then [`after_cut`](Self::after_cut) may lose them, in part and out
/// of order. Every operation that changes something is counted, so that a test
/// can stop the power at each of them in turn. Clones share the files.
#[derive(Clone, Default)]
pub struct FaultStorage {
    disk: Arc<Mutex<Disk>>,
}

/// What a power cut leaves of the changes that were not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// None of them. The change that was being made is not there either.
    Synced,
    /// All of them. A killed process leaves this, too.
    All,
    /// All but the newest write, of which a part of any length from its
    /// beginning is there.
    Torn(u64),
    /// Any of them, in pieces of a sector. Sectors of a file's new length that
    /// were not written hold zeros, or anything.
    Random(u64),
}

/// How one operation fails. How much of it was done by then is up to the seed:
/// any part of a write, a name changed or not, some of what was to be synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The medium: EIO. What a sync did not write counts as clean from there on
    /// and is never written unless it is changed again, as Linux has it.
    Medium(u64),
    /// ENOSPC, as a write, a new name or, on copy-on-write file systems, any
    /// other change may say. Names are as they were.
    NoSpace(u64),
    /// EINTR, or a write that ends short.
    Interrupted(u64),
}

impl Fault {
    fn error(self) -> io::Error {
        match self {
            Self::Medium(_) => Errno::IO.into(),
            Self::NoSpace(_) => Errno::NOSPC.into(),
            Self::Interrupted(_) => Errno::INTR.into(),
        }
    }

    fn random(self) -> Random {
        let (Self::Medium(seed) | Self::NoSpace(seed) | Self::Interrupted(seed)) = self;
        Random(seed)
    }
}

impl FaultStorage {
    /// No files.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many changes were asked for so far.
    pub fn operations(&self) -> u64 {
        self.disk().operations
    }

    /// Stops the power in the midst of the change of this number, counted as
    /// [`operations`](Self::operations) does, from 1. It and all later calls
    /// fail.
    pub fn cut_at(&self, operation: u64) {
        self.disk().cut_at = Some(operation);
    }

    /// Turns a cut into the death of the process: all works again, nothing is
    /// lost, and what was not synced still is not. No fault stays set.
    pub fn restart(&self) {
        let mut disk = self.disk();
        disk.off = false;
        disk.cut_at = None;
        disk.fail_at = None;
        disk.fail_look = None;
    }

    /// Lets the change of this number fail with an I/O error, half-done if it is a
    /// write. If it is a sync, what was to be synced counts as clean from there on
    /// and is never written unless it is changed again, as Linux has it.
    pub fn fail_at(&self, operation: u64) {
        self.disk().fail_at = Some((operation, None));
    }

    /// As [`fail_at`](Self::fail_at), in the way that is told.
    pub fn fail_with(&self, operation: u64, fault: Fault) {
        self.disk().fail_at = Some((operation, Some(fault)));
    }

    /// How many times a file was opened, asked for its size or read, or a
    /// directory made or listed so far.
    pub fn looks(&self) -> u64 {
        self.disk().looks
    }

    /// Lets one of those fail that change nothing, by its number as
    /// [`looks`](Self::looks) counts.
    pub fn fail_look(&self, look: u64, fault: Fault) {
        self.disk().fail_look = Some((look, fault));
    }

    /// Bounds the bytes of all files together; writing more finds the disk
    /// full.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.disk().capacity = bytes;
    }

    /// Bytes of all files together.
    pub fn used(&self) -> u64 {
        self.disk().used()
    }

    /// How many bytes were read so far.
    pub fn bytes_read(&self) -> u64 {
        self.disk().read
    }

    /// Lets reading any of these bytes fail with an I/O error. A file of which
    /// none can be read (`0..u64::MAX`) can't be opened either.
    pub fn set_unreadable(&self, file: &str, bytes: Range<u64>) {
        let mut disk = self.disk();
        if let Some(inode) = disk.names.get(file).copied() {
            disk.inodes[inode].unreadable.push(bytes);
        }
    }

    /// All files and what is in them.
    pub fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let disk = self.disk();
        let content = |inode: &usize| disk.inodes[*inode].cache.clone();
        disk.names
            .iter()
            .map(|(name, inode)| (name.clone(), content(inode)))
            .collect()
    }

    /// Puts a file in place, durably, or replaces what is in it.
    pub fn put(&self, file: &str, bytes: Vec<u8>) {
        let mut disk = self.disk();
        let inode = disk.names.get(file).copied().unwrap_or(disk.inodes.len());
        let content = Inode {
            durable: bytes.clone(),
            cache: bytes,
            ..Inode::default()
        };
        if inode == disk.inodes.len() {
            disk.inodes.push(content);
            disk.names.insert(file.to_owned(), inode);
            disk.durable_names.insert(file.to_owned(), inode);
        } else {
            disk.inodes[inode] = content;
        }
    }

    /// The medium as a power cut at this moment would leave it, with the power
    /// back and no fault set. This storage stays as it is.
    pub fn after_cut(&self, cut: Cut) -> Self {
        let disk = self.disk();
        let mut random = Random(match cut {
            Cut::Synced | Cut::All => 0,
            Cut::Torn(seed) | Cut::Random(seed) => seed,
        });
        let newest = disk
            .inodes
            .iter()
            .filter_map(|inode| inode.pending.last())
            .map(|change| change.operation)
            .max();
        let inodes = disk
            .inodes
            .iter()
            .map(|inode| {
                let content = inode.after_cut(cut, newest, &mut random);
                Inode {
                    durable: content.clone(),
                    cache: content,
                    unreadable: inode.unreadable.clone(),
                    pending: Vec::new(),
                }
            })
            .collect();
        let mut names = disk.durable_names.clone();
        for change in &disk.pending_names {
            let kept = match cut {
                Cut::Synced => false,
                Cut::All | Cut::Torn(_) => true,
                Cut::Random(_) => random.flip(),
            };
            if kept {
                change.apply(&mut names);
            }
        }
        let after = Disk {
            inodes,
            durable_names: names.clone(),
            names,
            ..Disk::default()
        };
        Self {
            disk: Arc::new(Mutex::new(after)),
        }
    }

    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn file(&self, inode: usize) -> Arc<dyn StorageFile> {
        Arc::new(FaultFile {
            storage: self.clone(),
            inode,
        })
    }
}

impl fmt::Debug for FaultStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultStorage").finish_non_exhaustive()
    }
}

impl Storage for FaultStorage {
    fn name(&self) -> String {
        "memory".to_owned()
    }

    fn lock(&self, file: &str) -> io::Result<Option<Lock>> {
        if !self.disk().names.contains_key(file) {
            self.create(file)?;
        }
        let mut disk = self.disk();
        if std::mem::replace(&mut disk.locked, true) {
            return Ok(None);
        }
        Ok(Some(Box::new(Held(self.clone()))))
    }

    fn list(&self, subdirectory: &str) -> io::Result<Vec<(String, u64)>> {
        let mut disk = self.disk();
        disk.look()?;
        let files = disk.names.iter().filter_map(|(path, inode)| {
            let (directory, name) = split(path);
            let len = disk.inodes[*inode].cache.len() as u64;
            (directory == subdirectory).then(|| (name.to_owned(), len))
        });
        Ok(files.collect())
    }

    fn open(&self, file: &str) -> io::Result<Arc<dyn StorageFile>> {
        let mut disk = self.disk();
        disk.look()?;
        let inode = disk.find(file)?;
        if disk.inodes[inode].unreadable.contains(&(0..u64::MAX)) {
            return Err(Errno::IO.into());
        }
        drop(disk);
        Ok(self.file(inode))
    }

    fn create(&self, file: &str) -> io::Result<Arc<dyn StorageFile>> {
        let mut disk = self.disk();
        let operation = disk.name_change()?;
        if disk
            .capacity
            .is_some_and(|capacity| disk.used() >= capacity)
        {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let inode = match disk.names.get(file).copied() {
            Some(inode) => {
                disk.inodes[inode].change(operation, Kind::SetLen(0));
                inode
            }
            None => {
                disk.inodes.push(Inode::default());
                let inode = disk.inodes.len() - 1;
                disk.rename(vec![(file.to_owned(), Some(inode))]);
                inode
            }
        };
        disk.done(operation)?;
        drop(disk);
        Ok(self.file(inode))
    }

    fn create_dir(&self, _subdirectory: &str) -> io::Result<()> {
        self.disk().look()
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut disk = self.disk();
        let operation = disk.name_change()?;
        let inode = disk.find(from)?;
        disk.rename(vec![(from.to_owned(), None), (to.to_owned(), Some(inode))]);
        disk.done(operation)
    }

    fn link(&self, from: &str, to: &str) -> io::Result<()> {
        let mut disk = self.disk();
        let operation = disk.name_change()?;
        let inode = disk.find(from)?;
        if disk.names.contains_key(to) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        disk.rename(vec![(to.to_owned(), Some(inode))]);
        disk.done(operation)
    }

    fn remove(&self, file: &str) -> io::Result<()> {
        let mut disk = self.disk();
        let operation = disk.name_change()?;
        disk.find(file)?;
        disk.rename(vec![(file.to_owned(), None)]);
        disk.done(operation)
    }

    fn sync_dir(&self, subdirectory: &str) -> io::Result<()> {
        let mut disk = self.disk();
        let operation = disk.count();
        // A failed one makes some names durable and leaves the others pending.
        let mut some = match (&operation, disk.failing()) {
            (Ok(_), _) => None,
            (Err(_), Some(fault)) => Some(fault.random()),
            (Err(_), None) => return operation.map(drop),
        };
        if let Ok(operation) = operation {
            disk.went_off(operation)?;
        }
        let pending = std::mem::take(&mut disk.pending_names);
        for change in pending {
            let kept = some.as_mut().is_none_or(Random::flip);
            if kept && change.directory() == subdirectory {
                change.apply(&mut disk.durable_names);
            } else {
                disk.pending_names.push(change);
            }
        }
        operation.map(drop)
    }
}

#[derive(Debug)]
struct FaultFile {
    storage: FaultStorage,
    inode: usize,
}

impl StorageFile for FaultFile {
    fn size(&self) -> io::Result<u64> {
        let mut disk = self.storage.disk();
        disk.look()?;
        Ok(disk.inodes[self.inode].cache.len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let mut disk = self.storage.disk();
        disk.look()?;
        disk.read += buffer.len() as u64;
        let inode = &disk.inodes[self.inode];
        let end = offset + buffer.len() as u64;
        let bad = |bytes: &Range<u64>| bytes.start < end && offset < bytes.end;
        if inode.unreadable.iter().any(bad) {
            return Err(io::Error::other("a sector that can't be read"));
        }
        let bytes = usize::try_from(offset)
            .ok()
            .and_then(|start| inode.cache.get(start..start + buffer.len()))
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(bytes);
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut disk = self.storage.disk();
        let operation = match disk.count() {
            Ok(operation) => operation,
            Err(error) => {
                // An error leaves a part of it behind.
                if disk.fails_now() {
                    let half = bytes.len() / 2;
                    let part = disk.failing().map_or(half, |fault| {
                        fault.random().below(bytes.len() as u64 + 1) as usize
                    });
                    let part = bytes[..part].to_vec();
                    let operation = disk.operations;
                    disk.inodes[self.inode].change(operation, Kind::Write(offset, part));
                }
                return Err(error);
            }
        };
        let len = disk.inodes[self.inode].cache.len() as u64;
        let room = disk.capacity.map_or(u64::MAX, |capacity| {
            len + capacity.saturating_sub(disk.used())
        });
        let fits = usize::try_from(room.saturating_sub(offset)).unwrap_or(usize::MAX);
        let written = &bytes[..bytes.len().min(fits)];
        disk.inodes[self.inode].change(operation, Kind::Write(offset, written.to_vec()));
        disk.went_off(operation)?;
        if written.len() < bytes.len() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut disk = self.storage.disk();
        let operation = disk.name_change()?;
        disk.inodes[self.inode].change(operation, Kind::SetLen(len));
        disk.done(operation)
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut disk = self.storage.disk();
        let operation = match disk.count() {
            Ok(operation) => operation,
            Err(error) => {
                if disk.fails_now() {
                    let mut some = disk.failing().map(Fault::random);
                    let inode = &mut disk.inodes[self.inode];
                    for change in std::mem::take(&mut inode.pending) {
                        if some.as_mut().is_some_and(Random::flip) {
                            change.kind.apply(&mut inode.durable);
                        }
                    }
                }
                return Err(error);
            }
        };
        disk.went_off(operation)?;
        let inode = &mut disk.inodes[self.inode];
        for change in std::mem::take(&mut inode.pending) {
            change.kind.apply(&mut inode.durable);
        }
        Ok(())
    }
}

#[derive(Default)]
struct Disk {
    inodes: Vec<Inode>,
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    pending_names: Vec<Rename>,
    operations: u64,
    read: u64,
    looks: u64,
    cut_at: Option<u64>,
    /// `None`: an I/O error that leaves half of a write, and nothing of the rest.
    fail_at: Option<(u64, Option<Fault>)>,
    fail_look: Option<(u64, Fault)>,
    capacity: Option<u64>,
    off: bool,
    locked: bool,
}

impl Disk {
    fn powered(&self) -> io::Result<()> {
        if self.off {
            return Err(io::Error::other("the power is off"));
        }
        Ok(())
    }

    /// Counts a change, and lets it fail if it is to.
    fn count(&mut self) -> io::Result<u64> {
        self.powered()?;
        self.operations += 1;
        if self.fails_now() {
            let unnamed = || io::Error::other("an error was asked for");
            return Err(self.failing().map_or_else(unnamed, Fault::error));
        }
        Ok(self.operations)
    }

    /// Whether the change that was just counted is to fail.
    fn fails_now(&self) -> bool {
        self.fail_at
            .is_some_and(|(operation, _)| operation == self.operations)
    }

    /// How it is to.
    fn failing(&self) -> Option<Fault> {
        self.fail_at
            .filter(|_| self.fails_now())
            .and_then(|(_, fault)| fault)
    }

    /// Counts a change that is made as a whole or not at all. The medium may
    /// fail after it was made, which [`done`](Self::done) then tells.
    fn name_change(&mut self) -> io::Result<u64> {
        let counted = self.count();
        match self.failing() {
            Some(Fault::Medium(seed)) if counted.is_err() && Random(seed).flip() => {
                Ok(self.operations)
            }
            _ => counted,
        }
    }

    fn done(&mut self, operation: u64) -> io::Result<()> {
        match self.failing() {
            Some(fault) => Err(fault.error()),
            None => self.went_off(operation),
        }
    }

    /// Counts something that changes nothing, and lets it fail if it is to.
    fn look(&mut self) -> io::Result<()> {
        self.powered()?;
        self.looks += 1;
        match self.fail_look {
            Some((look, fault)) if look == self.looks => Err(fault.error()),
            _ => Ok(()),
        }
    }

    /// Whether the power went off during this change.
    fn went_off(&mut self, operation: u64) -> io::Result<()> {
        self.off |= self.cut_at == Some(operation);
        self.powered()
    }

    fn find(&self, file: &str) -> io::Result<usize> {
        let inode = self.names.get(file).copied();
        inode.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn used(&self) -> u64 {
        let mut linked: Vec<usize> = self.names.values().copied().collect();
        linked.sort_unstable();
        linked.dedup();
        linked
            .iter()
            .map(|inode| self.inodes[*inode].cache.len() as u64)
            .sum()
    }

    fn rename(&mut self, names: Vec<(String, Option<usize>)>) {
        let change = Rename(names);
        change.apply(&mut self.names);
        self.pending_names.push(change);
    }
}

/// Names that come, go or change, at once.
struct Rename(Vec<(String, Option<usize>)>);

impl Rename {
    fn directory(&self) -> &str {
        self.0.first().map_or("", |(path, _)| split(path).0)
    }

    fn apply(&self, names: &mut BTreeMap<String, usize>) {
        for (name, inode) in &self.0 {
            match inode {
                Some(inode) => names.insert(name.clone(), *inode),
                None => names.remove(name),
            };
        }
    }
}

#[derive(Default)]
struct Inode {
    /// What the running system sees.
    cache: Vec<u8>,
    /// What is on the medium for certain.
    durable: Vec<u8>,
    /// What was changed since the last sync.
    pending: Vec<Change>,
    unreadable: Vec<Range<u64>>,
}

struct Change {
    operation: u64,
    kind: Kind,
}

enum Kind {
    Write(u64, Vec<u8>),
    SetLen(u64),
}

impl Inode {
    fn change(&mut self, operation: u64, kind: Kind) {
        kind.apply(&mut self.cache);
        self.pending.push(Change { operation, kind });
    }

    fn after_cut(&self, cut: Cut, newest: Option<u64>, random: &mut Random) -> Vec<u8> {
        let mut content = self.durable.clone();
        if cut == Cut::Synced {
            return content;
        }
        let filler = if random.flip() {
            0
        } else {
            random.next() as u8
        };
        for Change { operation, kind } in &self.pending {
            match (cut, kind) {
                (Cut::Torn(_), Kind::Write(offset, bytes)) if Some(*operation) == newest => {
                    let len = random.below(bytes.len() as u64 + 1) as usize;
                    Kind::Write(*offset, bytes[..len].to_vec()).apply(&mut content);
                }
                (Cut::Random(_), Kind::Write(offset, bytes)) => {
                    let mut at = 0;
                    while at < bytes.len() {
                        let start = *offset + at as u64;
                        let len = (SECTOR - start % SECTOR) as usize;
                        let sector = &bytes[at..bytes.len().min(at + len)];
                        at += len;
                        if !random.flip() {
                            continue;
                        }
                        if start as usize > content.len() {
                            content.resize(start as usize, filler);
                        }
                        Kind::Write(start, sector.to_vec()).apply(&mut content);
                    }
                }
                (Cut::Random(_), Kind::SetLen(_)) if random.flip() => {}
                _ => kind.apply(&mut content),
            }
        }
        content
    }
}

impl Kind {
    fn apply(&self, content: &mut Vec<u8>) {
        match self {
            Self::SetLen(len) => content.resize(*len as usize, 0),
            Self::Write(offset, bytes) => {
                let (start, end) = (*offset as usize, *offset as usize + bytes.len());
                if content.len() < end {
                    content.resize(end, 0);
                }
                content[start..end].copy_from_slice(bytes);
            }
        }
    }
}

/// Frees the lock.
struct Held(FaultStorage);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.disk().locked = false;
    }
}

/// SplitMix64: which changes survive is to be the same for the same seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn flip(&mut self) -> bool {
        self.next() & 1 == 1
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// The parent directory and the name in it.
fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

const SECTOR: u64 = 512;
