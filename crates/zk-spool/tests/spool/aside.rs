//! What can be done to a spool from outside: verifying it beside its owner, and
//! looking after the records that were refused.

use std::{
    fs, io,
    ops::ControlFlow,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use zk_spool::{
    Damage, Error, Full, Inspection, Options, Record, Rejected, Report, Spool, SyncPolicy, inspect,
    storage::{Directory, Lock, Storage, StorageFile},
};

use crate::common::{append, append_batch, peek_all, quick_directory, small};

fn look(dir: &Path) -> Inspection {
    inspect(dir).unwrap().expect("there is a spool")
}

fn verify(dir: &Path) -> Report {
    look(dir).verify(|_| {}).unwrap()
}

fn rejected(dir: &Path) -> Vec<Record> {
    let mut records = Vec::new();
    look(dir)
        .visit_rejected(|record| {
            records.push(record);
            ControlFlow::Continue(())
        })
        .unwrap();
    records
}

#[test]
fn beside_its_owner_it_finds_no_damage_where_there_is_none() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::open(dir.path(), small()).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..400 {
                append_batch(&spool, &vec![100; 1 + round % 7]).unwrap();
                if round % 5 == 0
                    && let Some(last) = peek_all(&spool).unwrap().last()
                {
                    spool.ack(last.position()).unwrap();
                }
            }
            done.store(true, Ordering::Relaxed);
        });
        let mut looks = 0;
        while !done.load(Ordering::Relaxed) || looks == 0 {
            // It may not have begun yet.
            let Some(seen) = inspect(dir.path()).unwrap() else {
                continue;
            };
            assert_eq!(seen.verify(|_| {}).unwrap().damage, []);
            looks += 1;
        }
    });
}

/// A directory that is looked into from outside before each change of a file, and in
/// the middle of what is appended.
#[derive(Debug)]
struct Watched {
    storage: Directory,
    path: PathBuf,
    looks: Arc<AtomicU64>,
    costs: Arc<Costs>,
}

#[derive(Debug)]
struct WatchedFile {
    file: Arc<dyn StorageFile>,
    name: String,
    path: PathBuf,
    looks: Arc<AtomicU64>,
    costs: Arc<Costs>,
}

/// What was asked of the files.
#[derive(Debug, Default)]
struct Costs {
    written: AtomicU64,
    state_syncs: AtomicU64,
    segment_syncs: AtomicU64,
}

impl Costs {
    fn take(&self) -> [u64; 3] {
        [&self.written, &self.state_syncs, &self.segment_syncs]
            .map(|count| count.swap(0, Ordering::Relaxed))
    }
}

fn look_on(path: &Path, looks: &AtomicU64, what: &str) {
    if let Some(seen) = inspect(path).unwrap() {
        assert_eq!(seen.verify(|_| {}).unwrap().damage, [], "before {what}");
        assert_eq!(seen.unreadable, 0, "before {what}");
        looks.fetch_add(1, Ordering::Relaxed);
    }
}

impl Watched {
    fn look(&self, what: &str) {
        look_on(&self.path, &self.looks, what);
    }

    fn watch(&self, name: &str, file: Arc<dyn StorageFile>) -> Arc<dyn StorageFile> {
        Arc::new(WatchedFile {
            file,
            name: name.to_owned(),
            path: self.path.clone(),
            looks: Arc::clone(&self.looks),
            costs: Arc::clone(&self.costs),
        })
    }
}

impl Storage for Watched {
    fn name(&self) -> String {
        self.storage.name()
    }
    fn lock(&self, file: &str) -> io::Result<Option<Lock>> {
        self.storage.lock(file)
    }
    fn list(&self, subdirectory: &str) -> io::Result<Vec<(String, u64)>> {
        self.storage.list(subdirectory)
    }
    fn open(&self, file: &str) -> io::Result<Arc<dyn StorageFile>> {
        Ok(self.watch(file, self.storage.open(file)?))
    }
    fn create(&self, file: &str) -> io::Result<Arc<dyn StorageFile>> {
        self.look(&format!("making {file}"));
        Ok(self.watch(file, self.storage.create(file)?))
    }
    fn create_dir(&self, subdirectory: &str) -> io::Result<()> {
        self.storage.create_dir(subdirectory)
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.look(&format!("renaming {from}"));
        self.storage.rename(from, to)
    }
    fn link(&self, from: &str, to: &str) -> io::Result<()> {
        self.storage.link(from, to)
    }
    fn remove(&self, file: &str) -> io::Result<()> {
        self.look(&format!("removing {file}"));
        self.storage.remove(file)
    }
    fn sync_dir(&self, subdirectory: &str) -> io::Result<()> {
        self.look("syncing a directory");
        self.storage.sync_dir(subdirectory)
    }
}

impl WatchedFile {
    fn look(&self, what: &str) {
        look_on(&self.path, &self.looks, what);
    }
}

impl StorageFile for WatchedFile {
    fn size(&self) -> io::Result<u64> {
        self.file.size()
    }
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_at(buffer, offset)
    }
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.look("writing");
        self.costs
            .written
            .fetch_add(bytes.len() as u64, Ordering::Relaxed);
        if offset >= self.file.size()? {
            for part in [bytes.len() / 2, bytes.len() - 1] {
                self.file.write_at(&bytes[..part], offset)?;
                self.look("the rest");
            }
        }
        self.file.write_at(bytes, offset)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.look("changing a length");
        self.file.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.look("syncing");
        match &*self.name {
            "state" => self.costs.state_syncs.fetch_add(1, Ordering::Relaxed),
            name if name.starts_with("rejected/") => 0,
            _ => self.costs.segment_syncs.fetch_add(1, Ordering::Relaxed),
        };
        self.file.sync_data()
    }
}

/// Whatever its owner is doing: the first opening, a new segment, a new stream.
#[test]
fn at_no_moment_is_there_damage_where_nothing_was_damaged() {
    let dir = quick_directory();
    let path = dir.path().join("spool");
    let looks = Arc::<AtomicU64>::default();
    let costs = Arc::<Costs>::default();
    for sync in [SyncPolicy::Each, SyncPolicy::Every(Duration::from_secs(1))] {
        for full in [Full::Reject, Full::DropOldest] {
            let storage = Watched {
                storage: Directory::new(&path).unwrap(),
                path: path.clone(),
                looks: Arc::clone(&looks),
                costs: Arc::clone(&costs),
            };
            let options = Options {
                sync,
                full,
                ..small()
            };
            let spool = Spool::open_on(Arc::new(storage), options).unwrap();
            costs.take();
            for round in 0..60 {
                match append(&spool, 300) {
                    Ok(_) | Err(Error::Full { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
                let oldest = spool.peek(1, 0).unwrap().pop();
                match (round % 8, oldest) {
                    (0, Some(record)) => spool.reject(record.position()).unwrap(),
                    (1..4, Some(record)) => spool.ack(record.position()).unwrap(),
                    _ => {}
                }
                if round % 20 == 0
                    && let Some(loss) = spool.losses().unwrap().last()
                {
                    spool.confirm(loss.id).unwrap();
                }
            }
            let stats = spool.stats().unwrap();
            let told = [stats.written, stats.state_syncs, stats.syncs];
            assert_eq!(told, costs.take(), "what it costs the medium");
            spool.close().unwrap();
            if full == Full::DropOldest {
                continue;
            }
            // The next one finds an end that is torn.
            let newest = fs::read_dir(&path)
                .unwrap()
                .map(|entry| entry.unwrap().path())
                .filter(|path| path.extension().is_some_and(|end| end == "seg"))
                .max()
                .unwrap();
            let torn = [fs::read(&newest).unwrap(), b"torn".to_vec()].concat();
            fs::write(&newest, torn).unwrap();
        }
    }
    assert!(looks.load(Ordering::Relaxed) > 1000);
}

/// Each byte of each file in turn: whatever the owner's own look finds, the one
/// from outside finds, and it changes nothing.
#[test]
fn it_finds_what_the_owner_would_find() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::open(dir.path(), small()).unwrap();
    for _ in 0..12 {
        append_batch(&spool, &[100; 3]).unwrap();
    }
    let third = peek_all(&spool).unwrap()[2].position();
    spool.ack(third).unwrap();
    spool.close().unwrap();
    let clean = verify(dir.path());
    assert_eq!((clean.records, &clean.damage[..]), (36, &[][..]));
    assert!(clean.segments > 2);

    let mut found = 0;
    let names: Vec<_> = fs::read_dir(dir.path())
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    for path in names {
        let before = fs::read(&path).unwrap();
        let name = path.file_name().unwrap().to_str().unwrap();
        // A prime step visits every field of each kind of file.
        for at in (0..before.len()).step_by(251) {
            let mut bytes = before.clone();
            bytes[at] ^= 0x10;
            fs::write(&path, &bytes).unwrap();
            let report = match look_again(dir.path()) {
                Ok(report) => report,
                // It may say that it is of another version, rightly sealed.
                Err(error) => panic!("{name} {at}: {error}"),
            };
            assert_eq!(fs::read(&path).unwrap(), bytes, "{name} {at}");
            let copy = tempfile::tempdir().unwrap();
            for entry in fs::read_dir(dir.path()).unwrap() {
                let entry = entry.unwrap();
                fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
            }
            let owner = Spool::open(copy.path(), small()).unwrap();
            let owners = owner.verify().unwrap().damage;
            let lost = |damage: &[Damage]| -> Vec<_> {
                damage.iter().filter_map(|damage| damage.lost).collect()
            };
            // What opening has mended is not there any more.
            if !owners.is_empty() {
                assert_ne!(report.damage, [], "{name} {at}: {owners:?}");
                assert_eq!(lost(&report.damage), lost(&owners), "{name} {at}");
            }
            for loss in owner.losses().unwrap() {
                let named = report.damage.iter().any(|damage| {
                    damage.lost.is_none_or(|(stream, first, last)| {
                        stream == loss.stream && first <= loss.first && loss.last <= last
                    })
                });
                assert!(named, "{name} {at}: {loss:?} {:?}", report.damage);
            }
            found += usize::from(!report.damage.is_empty());
        }
        fs::write(&path, &before).unwrap();
    }
    assert!(found > 20, "{found}");
    assert_eq!(verify(dir.path()), clean);
}

fn look_again(dir: &Path) -> Result<Report, Error> {
    inspect(dir)?.expect("there is a spool").verify(|_| {})
}

#[test]
fn a_segment_that_was_removed_by_hand_is_missed() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::open(dir.path(), small()).unwrap();
    for _ in 0..60 {
        append(&spool, 100).unwrap();
    }
    let stream = spool.stream();
    spool.close().unwrap();
    let mut names: Vec<_> = fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|end| end == "seg"))
        .collect();
    names.sort_unstable();
    assert!(names.len() > 4);
    // One in the middle, and the newest.
    let middle = fs::read(&names[2]).unwrap();
    fs::remove_file(&names[2]).unwrap();
    let damage = verify(dir.path()).damage;
    let lost = damage[0].lost.unwrap();
    assert_eq!((damage.len(), lost.0), (1, stream));
    assert!(1 < lost.1 && lost.1 <= lost.2 && lost.2 < 60, "{lost:?}");
    fs::write(&names[2], middle).unwrap();
    assert_eq!(verify(dir.path()).damage, []);
    fs::remove_file(names.last().unwrap()).unwrap();
    assert_eq!(verify(dir.path()).damage.len(), 1);
}

/// Where one stream ends and the next begins, the sequences don't tell.
#[test]
fn the_last_segment_of_a_stream_is_missed() {
    let dir = tempfile::tempdir().unwrap();
    let file = |number: usize| dir.path().join(format!("{number:020}.seg"));
    let spool = Spool::open(dir.path(), small()).unwrap();
    for _ in 0..40 {
        append(&spool, 100).unwrap();
    }
    let (stream, last) = (spool.stream(), spool.stats().unwrap().segments);
    spool.close().unwrap();
    let torn = [fs::read(file(last)).unwrap(), b"torn".to_vec()].concat();
    fs::write(file(last), torn).unwrap();
    let spool = Spool::open(dir.path(), small()).unwrap();
    append(&spool, 100).unwrap();
    assert_eq!(spool.predecessor().unwrap().stream, stream);
    assert_eq!(verify(dir.path()).damage, []);
    fs::remove_file(file(last)).unwrap();
    let damage = verify(dir.path()).damage;
    let (of, first, until) = damage[0].lost.unwrap();
    assert_eq!((damage.len(), of, until), (1, stream, 40));
    assert!(1 < first && first < 40, "{first}");
    // What is done is not missed.
    while let Some(record) = spool.peek(1, 0).unwrap().pop() {
        spool.ack(record.position()).unwrap();
    }
    assert_eq!(verify(dir.path()).damage, []);
}

/// What the spool did not put there is not its to remove.
#[test]
fn other_files_beside_refused_records_stay() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        evidence: Some(250),
        ..small()
    };
    let spool = Spool::open(dir.path(), options).unwrap();
    let notes = dir.path().join("rejected/0-notes.txt");
    fs::create_dir(notes.parent().unwrap()).unwrap();
    fs::write(&notes, [b'x'; 300]).unwrap();
    for _ in 0..4 {
        append(&spool, 100).unwrap();
        let oldest = spool.peek(1, 0).unwrap().pop().unwrap();
        spool.reject(oldest.position()).unwrap();
    }
    let kept: Vec<_> = rejected(dir.path()).iter().map(Record::sequence).collect();
    assert_eq!(kept, [3, 4]);
    assert!(notes.exists());
}

/// It counts, so it is shown, and can be removed.
#[test]
fn a_refused_record_that_is_none_any_more_can_be_taken_away() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::open(dir.path(), small()).unwrap();
    append(&spool, 100).unwrap();
    let oldest = spool.peek(1, 0).unwrap().pop().unwrap();
    spool.reject(oldest.position()).unwrap();
    spool.close().unwrap();
    let name = fs::read_dir(dir.path().join("rejected"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .next()
        .unwrap();
    fs::write(&name, vec![0; (1 << 20) + 1]).unwrap();
    assert_eq!(look(dir.path()).rejected, 1);
    let seen = rejected(dir.path());
    assert_eq!((seen.len(), seen[0].bytes()), (1, &[][..]));
    let lock = Rejected::lock(dir.path()).unwrap().unwrap();
    lock.remove(seen[0].position()).unwrap();
    assert!(!name.exists());
}

#[test]
fn refused_records_are_seen_beside_the_owner_and_taken_away_without_one() {
    let dir = tempfile::tempdir().unwrap();
    assert!(Rejected::lock(dir.path()).unwrap().is_none());
    assert!(!dir.path().join("zk-spool").exists());
    let spool = Spool::open(dir.path(), small()).unwrap();
    for _ in 0..4 {
        append(&spool, 100).unwrap();
    }
    let records = peek_all(&spool).unwrap();
    for record in &records[..3] {
        spool.reject(record.position()).unwrap();
    }
    // What is none of the spool's is not shown, and not followed.
    let aside = dir.path().join("rejected");
    fs::write(aside.join("notes.rec"), b"mine").unwrap();
    let link = format!("{:020}-{:020}-{}.rec", 1, 9, spool.stream());
    symlink("/dev/zero", aside.join(link)).unwrap();

    let seen = rejected(dir.path());
    let brief = |records: &[Record]| -> Vec<_> {
        let all = records.iter();
        all.map(|r| (r.stream(), r.sequence(), r.bytes().to_vec()))
            .collect()
    };
    assert_eq!(brief(&seen), brief(&records[..3]));
    let look = look(dir.path());
    assert_eq!(look.rejected, 3);
    let bytes: usize = records[..3].iter().map(|record| record.bytes().len()).sum();
    assert_eq!(look.rejected_bytes, bytes as u64);

    let locked = Rejected::lock(dir.path()).unwrap_err();
    assert!(matches!(locked, Error::Locked { .. }), "{locked}");
    let losses = spool.losses().unwrap();
    spool.close().unwrap();
    let lock = Rejected::lock(dir.path()).unwrap().unwrap();
    let second = Spool::open(dir.path(), small()).unwrap_err();
    assert!(matches!(second, Error::Locked { .. }), "{second}");
    lock.remove(seen[1].position()).unwrap();
    assert_eq!(
        brief(&rejected(dir.path())),
        brief(&[seen[0].clone(), seen[2].clone()])
    );
    drop(lock);
    // That they were refused stays known.
    let spool = Spool::open(dir.path(), small()).unwrap();
    assert_eq!(spool.losses().unwrap(), losses);
}
