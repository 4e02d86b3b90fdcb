//! What is around sled, because sled alone does not keep what it acknowledged,
//! panics on damage, and gives no room back.

use std::{
    collections::BTreeMap,
    ffi::c_int,
    fs,
    io::Write as _,
    os::{fd::BorrowedFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, Mutex, Once, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tempfile::TempDir;
use zk_spool::{Engine, Error, Full, Options, Reason, Spool, StreamId, inspect};

use crate::{
    common::{
        Key, Random, append, append_batch, content, copy, defaults, drain, effort, key, names,
        peek_all, quick_directory, small, tell,
    },
    costs::usage,
};

/// The C library's function, in its place: what was not given to it a power cut
/// takes.
#[unsafe(no_mangle)]
#[allow(unsafe_code, reason = "it takes the place of a C function")]
extern "C" fn fdatasync(fd: c_int) -> c_int {
    before_sync(fd);
    // SAFETY: whoever calls it holds the file open.
    let file = unsafe { BorrowedFd::borrow_raw(fd) };
    done(fd, rustix::fs::fdatasync(file))
}

/// As `fdatasync`.
#[unsafe(no_mangle)]
#[allow(unsafe_code, reason = "it takes the place of a C function")]
extern "C" fn fsync(fd: c_int) -> c_int {
    before_sync(fd);
    // SAFETY: whoever calls it holds the file open.
    let file = unsafe { BorrowedFd::borrow_raw(fd) };
    done(fd, rustix::fs::fsync(file))
}

fn done(fd: c_int, result: rustix::io::Result<()>) -> c_int {
    if result.is_ok() {
        after_sync(fd);
        0
    } else {
        -1
    }
}

/// One directory whose databases are watched.
#[derive(Default)]
struct Watch {
    spool: PathBuf,
    /// The databases as they are on the medium for certain.
    synced: BTreeMap<PathBuf, Arc<Vec<u8>>>,
    /// Records whose append returned.
    appended: Vec<(Key, usize)>,
    /// Of so many syncs, one is a moment to cut at.
    one_of: u64,
    syncs: u64,
    cuts: Vec<Moment>,
}

/// All there is at the moment before a sync.
struct Moment {
    image: TempDir,
    synced: BTreeMap<PathBuf, Arc<Vec<u8>>>,
    appended: usize,
}

static WATCH: Mutex<Option<Watch>> = Mutex::new(None);

fn watched<T>(fd: c_int, see: impl FnOnce(&mut Watch, PathBuf) -> T) -> Option<T> {
    let path = fs::read_link(format!("/proc/self/fd/{fd}")).ok()?;
    let mut watch = WATCH.lock().unwrap_or_else(PoisonError::into_inner);
    let watch = watch.as_mut()?;
    let below = path.strip_prefix(&watch.spool).ok()?.to_owned();
    (below.file_name()? == "db").then(|| see(watch, below))
}

fn before_sync(fd: c_int) {
    watched(fd, |watch, _| {
        watch.syncs += 1;
        if !watch.syncs.is_multiple_of(watch.one_of) {
            return;
        }
        let image = quick_directory();
        copy(&watch.spool, &image.path().join("spool"));
        watch.cuts.push(Moment {
            image,
            synced: watch.synced.clone(),
            appended: watch.appended.len(),
        });
    });
}

fn after_sync(fd: c_int) {
    watched(fd, |watch, below| {
        let bytes = fs::read(watch.spool.join(&below)).unwrap();
        watch.synced.insert(below, Arc::new(bytes));
    });
}

/// How much of what a database was given since its last sync is on the medium.
#[derive(Clone, Copy, Debug)]
enum Kept {
    Nothing,
    /// The length, with zeros.
    Length,
    /// Any sectors.
    Sectors(u64),
}

fn cut(moment: &Moment, kept: Kept) -> PathBuf {
    let image = moment.image.path().join(format!("{kept:?}"));
    copy(&moment.image.path().join("spool"), &image);
    for entry in image.read_dir().unwrap() {
        let database = entry.unwrap().path().join("db");
        let Ok(mut bytes) = fs::read(&database) else {
            continue;
        };
        let below = database.strip_prefix(&image).unwrap();
        let synced = moment
            .synced
            .get(below)
            .map_or(&[][..], |bytes| bytes.as_slice());
        let mut random = Random(match kept {
            Kept::Sectors(seed) => seed,
            _ => 0,
        });
        for at in (0..bytes.len()).step_by(512) {
            let sector = at..bytes.len().min(at + 512);
            if matches!(kept, Kept::Sectors(_)) && random.below(2) == 0 {
                continue;
            }
            for place in sector {
                bytes[place] = synced.get(place).copied().unwrap_or(0);
            }
        }
        if matches!(kept, Kept::Nothing) {
            bytes.truncate(synced.len());
        }
        fs::write(&database, bytes).unwrap();
    }
    image
}

/// A power cut before syncs, one of so many, takes what was written since the one
/// before, in whole or in part. Returns how many were tried.
fn power_cuts(options: Options, one_of: u64, groups: &[Vec<usize>]) -> usize {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let place = quick_directory();
    let path = place.path().join("spool");
    *WATCH.lock().unwrap_or_else(PoisonError::into_inner) = Some(Watch {
        spool: path.clone(),
        one_of,
        ..Watch::default()
    });
    let spool = Spool::open(&path, options).unwrap();
    let stream = spool.stream();
    for lens in groups {
        let numbers = append_batch(&spool, lens).unwrap();
        let mut watch = WATCH.lock().unwrap();
        let appended = numbers.into_iter().map(|number| (stream, number));
        let appended = appended.zip(lens.iter().copied());
        watch.as_mut().unwrap().appended.extend(appended);
    }
    let watch = WATCH.lock().unwrap().take().unwrap();
    drop(spool);
    assert!(watch.syncs > groups.len() as u64, "a sync for each append");

    let mut tried = 0;
    for (index, moment) in watch.cuts.iter().enumerate() {
        let seed = index as u64;
        let kinds = [
            Kept::Nothing,
            Kept::Sectors(seed),
            Kept::Length,
            Kept::Sectors(!seed),
        ];
        // One after the other; all of them where there is time.
        let kinds = kinds.into_iter().cycle().skip(index % 4);
        for kept in kinds.take(effort().min(4) as usize) {
            let image = cut(moment, kept);
            let what = format!("cut {index}, {kept:?}");
            let spool = Spool::open(&image, options).unwrap_or_else(|e| panic!("{what}: {e}"));
            let mut there = drain(&spool).into_iter();
            for ((stream, sequence), len) in &watch.appended[..moment.appended] {
                let record = there.next().unwrap_or_else(|| panic!("{what}: {sequence}"));
                assert_eq!(key(&record), (*stream, *sequence), "{what}");
                assert_eq!(record.bytes(), content(*stream, *sequence, *len), "{what}");
            }
            assert_eq!(spool.losses().unwrap(), [], "{what}");
            append(&spool, 100).unwrap();
            assert_eq!(drain(&spool).len(), 1, "{what}");
            drop(spool);
            fs::remove_dir_all(image).unwrap();
            tried += 1;
        }
    }
    tried
}

/// sled's own flush never asks the medium to keep anything.
#[test]
fn a_power_cut_loses_nothing_that_was_acknowledged() {
    let mut random = Random(11);
    let groups: Vec<Vec<usize>> = (0..40 * effort())
        .map(|_| match random.below(8) {
            0 => vec![150_000],
            1..4 => vec![600; 1 + random.below(64) as usize],
            _ => vec![random.below(3000) as usize],
        })
        .collect();
    let options = Options {
        cap: 4 << 20,
        segment_size: Some(256 << 10),
        ..defaults()
    };
    let tried = power_cuts(options, 1, &groups);
    println!("{tried} power cuts under sled");
}

/// sled writes over parts of its log once what was in them is copied. The copies are
/// durable by then, however large the group that is written.
#[test]
fn a_power_cut_in_a_large_group_loses_nothing_before_it() {
    let mut groups = vec![vec![600; 64]; 100];
    groups.push(vec![600; 8000]);
    groups.extend(vec![vec![600; 64]; 20]);
    groups.push(vec![100_000; 40]);
    let options = Options {
        cap: 128 << 20,
        segment_size: Some(16 << 20),
        ..defaults()
    };
    let tried = power_cuts(options, 17, &groups);
    println!("{tried} power cuts in large groups");
}

/// Counts sled's panics, and keeps them from filling the screen.
fn count_panics() -> &'static AtomicU64 {
    static PANICS: AtomicU64 = AtomicU64::new(0);
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if info
                .location()
                .is_some_and(|at| at.file().contains("/sled-"))
            {
                PANICS.fetch_add(1, Ordering::Relaxed);
            } else {
                usual(info);
            }
        }));
    });
    &PANICS
}

struct Store {
    place: TempDir,
    closed: bool,
    stream: StreamId,
    waiting: Vec<(Key, Vec<u8>)>,
}

fn damage_options() -> Options {
    Options {
        cap: 4 << 20,
        segment_size: Some(256 << 10),
        ..defaults()
    }
}

/// Three segments, closed, or as a killed process leaves them.
fn store(closed: bool) -> Store {
    let place = quick_directory();
    let path = place.path().join("spool");
    let spool = Spool::open(&path, damage_options()).unwrap();
    while spool.stats().unwrap().disk_bytes < 600 << 10 {
        append_batch(&spool, &[300, 600, 40]).unwrap();
    }
    assert_eq!(spool.stats().unwrap().segments, 3);
    let records = peek_all(&spool).unwrap();
    let waiting = records.iter().map(|r| (key(r), r.bytes().to_vec()));
    let (stream, waiting) = (spool.stream(), waiting.collect());
    let live = place.path().join("live");
    if closed {
        spool.close().unwrap();
    } else {
        copy(&path, &live);
        drop(spool);
        fs::remove_dir_all(&path).unwrap();
        fs::rename(&live, &path).unwrap();
    }
    Store {
        place,
        closed,
        stream,
        waiting,
    }
}

/// What sled has written, not what it has only reserved.
fn used(bytes: &[u8]) -> usize {
    bytes.iter().rposition(|byte| *byte != 0).unwrap()
}

fn database(spool: &Path, number: u64) -> PathBuf {
    spool.join(format!("{number:020}.sled/db"))
}

/// What is there is served, what is not is named, and appending goes on, after damage
/// to the database of this number. Returns how many are lost.
fn check(store: &Store, spool: &Path, damaged: u64, what: &str) -> usize {
    let opened = Spool::open(spool, damage_options()).unwrap_or_else(|e| panic!("{what}: {e}"));
    let records = drain(&opened);
    let losses = opened.losses().unwrap();
    // Where the newest one ended, nobody knows any more.
    let doubts = losses.iter().filter(|loss| loss.records == 0).count();
    assert!(doubts <= usize::from(damaged == 3), "{what}: {losses:?}");
    let unknown = !store.closed || what.starts_with("complete");
    let mut there = records.iter().peekable();
    let mut lost = 0;
    for (known, bytes) in &store.waiting {
        if there.peek().is_some_and(|record| key(record) == *known) {
            assert_eq!(there.next().unwrap().bytes(), bytes, "{what}");
            continue;
        }
        if unknown && doubts > 0 {
            lost += 1;
            continue;
        }
        let named = losses.iter().filter(|loss| names(loss, *known)).count();
        assert_eq!(named, 1, "{what}: {known:?} is not there, and {losses:?}");
        lost += 1;
    }
    assert!(there.next().is_none(), "{what}");
    assert!(losses.iter().all(|loss| loss.reason == Reason::Damaged));
    let sequence = append(&opened, 100).unwrap_or_else(|e| panic!("{what}: {e}"));
    let stream = opened.stream();
    assert!(
        stream != store.stream || sequence > store.waiting.len() as u64,
        "{what}"
    );
    drop(opened);
    // No crash loop: it opens again, and has nothing more to say.
    let opened = Spool::open(spool, damage_options()).unwrap_or_else(|e| panic!("{what}: {e}"));
    assert_eq!(opened.stream(), stream, "{what}");
    assert_eq!(opened.losses().unwrap(), losses, "{what}");
    assert_eq!(drain(&opened).len(), 1, "{what}");
    lost
}

#[test]
fn a_flipped_bit_costs_no_more_than_its_segment() {
    let panics = count_panics();
    let store = store(false);
    let whole = store.place.path().join("spool");
    let mut random = Random(3);
    let (mut tries, mut opening, mut losing, mut harmless) = (0, 0, 0, 0);
    for round in 0..40 * effort() {
        for number in 1..=3 {
            let damaged = quick_directory();
            let damaged = damaged.path().join("spool");
            copy(&whole, &damaged);
            let file = database(&damaged, number);
            let mut bytes = fs::read(&file).unwrap();
            let at = random.below(used(&bytes) as u64) as usize;
            bytes[at] ^= 1 << random.below(8);
            fs::write(&file, bytes).unwrap();
            let before = panics.load(Ordering::Relaxed);
            let lost = check(
                &store,
                &damaged,
                number,
                &format!("round {round}, {number}: byte {at}"),
            );
            tries += 1;
            opening += u64::from(panics.load(Ordering::Relaxed) > before);
            losing += u64::from(lost > 0);
            harmless += u64::from(lost == 0);
            assert!(lost <= store.waiting.len() / 2, "{lost} lost");
        }
    }
    println!(
        "{tries} bits flipped: sled panicked for {opening}, {losing} lost records, {harmless} none"
    );
}

/// In a large database sled panics when it is opened, and only its segment is lost.
#[test]
fn a_panic_of_sled_costs_no_more_than_its_segment() {
    let panics = count_panics();
    let place = quick_directory();
    let whole = place.path().join("whole");
    let options = Options {
        cap: 256 << 20,
        segment_size: Some(12 << 20),
        ..defaults()
    };
    let spool = Spool::open(place.path().join("live"), options).unwrap();
    while spool.stats().unwrap().segments < 2 {
        append_batch(&spool, &[600; 16]).unwrap();
    }
    let (stream, last) = spool.stats().unwrap().newest.unwrap();
    copy(&place.path().join("live"), &whole);
    drop(spool);

    let bytes = fs::read(database(&whole, 1)).unwrap();
    let mut random = Random(5);
    let mut panicked = 0;
    let tries = 12 * effort();
    for _ in 0..tries {
        let damaged = quick_directory();
        let damaged = damaged.path().join("spool");
        copy(&whole, &damaged);
        let mut bytes = bytes.clone();
        let at = random.below(used(&bytes) as u64) as usize;
        bytes[at] ^= 1;
        fs::write(database(&damaged, 1), bytes).unwrap();
        let before = panics.load(Ordering::Relaxed);
        let spool = Spool::open(&damaged, options).unwrap();
        let records = drain(&spool);
        let losses = spool.losses().unwrap();
        let lost: u64 = losses.iter().map(|loss| loss.records).sum();
        let all = records.len() as u64 + lost;
        assert_eq!(all, last, "byte {at}: {losses:?}");
        assert_eq!(records.last().map(key), Some((stream, last)));
        drop(spool);
        // Again, without a hand.
        let spool = Spool::open(&damaged, options).unwrap();
        assert_eq!(spool.losses().unwrap(), losses);
        assert_eq!(spool.stream(), stream);
        assert_eq!(append(&spool, 100).unwrap(), last + 1);
        panicked += u64::from(panics.load(Ordering::Relaxed) > before);
    }
    println!(
        "{tries} bits flipped in {} bytes: sled panicked for {panicked}",
        bytes.len()
    );
    assert!(panicked > 0, "or nothing was caught");
}

#[test]
fn a_database_that_is_cut_off_or_gone() {
    count_panics();
    let store = store(true);
    let whole = store.place.path().join("spool");
    for number in 1..=3 {
        for name in ["db", "conf", "complete", "blobs"] {
            let damaged = quick_directory();
            let damaged = damaged.path().join("spool");
            copy(&whole, &damaged);
            let file = database(&damaged, number).with_file_name(name);
            if file.is_dir() {
                fs::remove_dir(&file).unwrap();
            } else {
                fs::remove_file(&file).unwrap();
            }
            let lost = check(
                &store,
                &damaged,
                number,
                &format!("{name} of {number} gone"),
            );
            assert_eq!(lost > 0, ["db", "complete"].contains(&name), "{name}");
        }
        let len = used(&fs::read(database(&whole, number)).unwrap()) as u64;
        for keep in [0, 1, 20, len / 4, len / 2, len - 100] {
            let damaged = quick_directory();
            let damaged = damaged.path().join("spool");
            copy(&whole, &damaged);
            let file = fs::File::options();
            let file = file
                .clone()
                .write(true)
                .open(database(&damaged, number))
                .unwrap();
            file.set_len(keep).unwrap();
            let lost = check(&store, &damaged, number, &format!("{number} cut to {keep}"));
            assert!(lost > 0);
        }
    }
}

/// A length that was made up is not read byte by byte: this would take for ever.
#[test]
fn a_length_beyond_all_pieces() {
    for full in [Full::Reject, Full::DropOldest] {
        let place = quick_directory();
        let options = Options { full, ..small() };
        let spool = Spool::open(place.path(), options).unwrap();
        append_batch(&spool, &[100; 3]).unwrap();
        let stream = spool.stream();
        spool.close().unwrap();
        let end = 1_u64 << 62;
        let crc = crc32c::crc32c(&end.to_be_bytes());
        let bytes = [&end.to_be_bytes()[..], &crc.to_be_bytes()].concat();
        fs::write(database(place.path(), 1).with_file_name("end"), bytes).unwrap();
        let spool = Spool::open(place.path(), options).unwrap();
        assert_ne!(spool.stream(), stream);
        assert_eq!(drain(&spool).len(), 3);
        assert_eq!(append(&spool, 100).unwrap(), 1);
        assert_eq!(spool.stats().unwrap().segments, 1);
    }
}

/// A database as long as a damaged file system says, and as none is: there is no room
/// for it, and to read it would take for ever.
#[test]
fn a_database_of_terabytes() {
    count_panics();
    let store = store(true);
    for number in 1..=3 {
        let damaged = quick_directory();
        let damaged = damaged.path().join("spool");
        copy(&store.place.path().join("spool"), &damaged);
        let file = fs::File::options()
            .write(true)
            .open(database(&damaged, number));
        file.unwrap().set_len(8 << 40).unwrap();
        assert!(check(&store, &damaged, number, &format!("{number} is long")) > 0);
    }
}

/// A snapshot says nothing that the database does not, and the configuration nothing
/// that is not known.
#[test]
fn a_damaged_snapshot_or_configuration_costs_nothing() {
    count_panics();
    let store = store(true);
    let mut random = Random(8);
    for round in 0..24 * effort() {
        let number = 1 + round % 3;
        let name = ["/snap.", "/conf"][round as usize / 12 % 2];
        let damaged = quick_directory();
        let damaged = damaged.path().join("spool");
        copy(&store.place.path().join("spool"), &damaged);
        drop(Spool::open(&damaged, damage_options()).unwrap());
        let files = database(&damaged, number);
        let files = files.parent().unwrap().read_dir().unwrap();
        let mut files = files.map(|entry| entry.unwrap().path());
        let file = files.find(|path| path.to_str().unwrap().contains(name));
        let file = file.unwrap();
        let mut bytes = fs::read(&file).unwrap();
        match round % 4 {
            0 => bytes.clear(),
            1 => bytes.truncate(bytes.len() / 2),
            2 => bytes.fill(0),
            _ => {
                let at = random.below(bytes.len() as u64) as usize;
                bytes[at] ^= 1 << random.below(8);
            }
        }
        fs::write(file, bytes).unwrap();
        assert_eq!(
            check(&store, &damaged, number, &format!("round {round}")),
            0
        );
    }
}

/// What sled reads as a whole, it would read until the memory ends. It makes them anew.
#[test]
fn files_of_sled_that_are_too_long() {
    let store = store(true);
    for number in 1..=3 {
        let damaged = quick_directory();
        let damaged = damaged.path().join("spool");
        copy(&store.place.path().join("spool"), &damaged);
        drop(Spool::open(&damaged, damage_options()).unwrap());
        let database = database(&damaged, number);
        let files = database.parent().unwrap().read_dir().unwrap();
        let files = files.map(|entry| entry.unwrap().path()).filter(|path| {
            let name = path.file_name().unwrap().to_str().unwrap();
            name == "conf" || name.starts_with("snap.")
        });
        let files: Vec<_> = files.collect();
        assert_eq!(files.len(), 2, "{files:?}");
        for path in files {
            let file = fs::File::options().write(true).open(path).unwrap();
            file.set_len(8 << 40).unwrap();
        }
        assert_eq!(
            check(&store, &damaged, number, &format!("{number} is long")),
            0
        );
    }
}

/// Its copy is what somebody may want to look at.
#[test]
fn a_damaged_database_is_set_aside() {
    count_panics();
    let store = store(true);
    let spool = store.place.path().join("spool");
    fs::write(database(&spool, 1), vec![0xA5; 100_000]).unwrap();
    check(&store, &spool, 1, "overwritten");
    assert!(!spool.join(format!("{:020}.sled", 1)).exists());
    let kept = spool.join(format!("damaged/{:020}.sled/db", 1));
    assert!(kept.is_file());
    assert_eq!(kept.metadata().unwrap().nlink(), 1);
}

/// Where there can be no second name, there is nothing that looks like a copy.
#[test]
fn a_damaged_database_that_can_not_be_set_aside() {
    count_panics();
    let store = store(true);
    let spool = store.place.path().join("spool");
    let kept = spool.join("damaged");
    fs::create_dir(&kept).unwrap();
    let Some(_mounted) = mount(&kept, "1m", "setting aside") else {
        return;
    };
    fs::write(database(&spool, 1), vec![0xA5; 100_000]).unwrap();
    check(&store, &spool, 1, "overwritten");
    assert_eq!(kept.read_dir().unwrap().count(), 0);
}

#[test]
fn what_a_kill_left_unfinished_is_cleared_away() {
    let store = store(true);
    let spool = store.place.path().join("spool");
    // One being made, one being removed, and a snapshot half written.
    copy(
        &spool.join(format!("{:020}.sled", 2)),
        &spool.join(format!("{:020}.sled", 9)),
    );
    fs::remove_file(spool.join(format!("{:020}.sled/complete", 9))).unwrap();
    fs::create_dir(spool.join(format!("{:020}.sled", 8))).unwrap();
    let half = spool.join(format!("{:020}.sled/snap.00000000000000FF.generating", 1));
    fs::write(half, b"half").unwrap();
    assert_eq!(check(&store, &spool, 0, "unfinished"), 0);
    for number in [8, 9] {
        assert!(!spool.join(format!("{number:020}.sled")).exists());
    }
}

#[test]
fn links_in_a_segment_are_not_followed() {
    let store = store(true);
    let spool = store.place.path().join("spool");
    for name in ["db", "conf", "blobs"] {
        let damaged = quick_directory();
        let victim = damaged.path().join("victim");
        let damaged = damaged.path().join("spool");
        copy(&spool, &damaged);
        let file = database(&damaged, 2).with_file_name(name);
        fs::rename(&file, &victim).unwrap();
        std::os::unix::fs::symlink(&victim, &file).unwrap();
        let before = fs::read(&victim).ok();
        assert!(check(&store, &damaged, 2, name) > 0);
        assert_eq!(fs::read(&victim).ok(), before);
        assert!(victim.exists());
    }
}

#[test]
fn room_is_given_back_when_a_segment_is_drained() {
    let place = quick_directory();
    let options = Options {
        cap: 64 << 20,
        segment_size: Some(1 << 20),
        ..defaults()
    };
    let spool = Spool::open(place.path(), options).unwrap();
    while spool.stats().unwrap().segments < 8 {
        append_batch(&spool, &[600; 64]).unwrap();
    }
    let mut used = usage(place.path());
    let mut segments = 8;
    while segments > 1 {
        let record = spool.peek(64, usize::MAX).unwrap().pop().unwrap();
        spool.ack(record.position()).unwrap();
        let left = spool.stats().unwrap().segments;
        if left < segments {
            let now = usage(place.path());
            assert!(used - now >= 1 << 20, "{used} bytes before, {now} after");
            (segments, used) = (left, now);
        }
    }
    assert!(used < 6 << 20, "{used} bytes");
}

#[test]
fn a_segment_holds_32_mib_at_most() {
    let place = quick_directory();
    let options = Options {
        cap: 1 << 30,
        segment_size: Some((32 << 20) + 1),
        ..defaults()
    };
    let opened = Spool::open(place.path(), options);
    assert!(matches!(opened, Err(Error::InvalidOptions { .. })));
    let options = Options {
        segment_size: Some(32 << 20),
        ..options
    };
    let spool = Spool::open(place.path(), options).unwrap();
    let large = append_batch(&spool, &[1 << 20; 32]);
    assert!(matches!(large, Err(Error::TooLarge { limit, .. }) if limit < 32 << 20));
    while spool.stats().unwrap().segments < 2 {
        let before = spool.stats().unwrap().disk_bytes;
        append_batch(&spool, &[1 << 20; 3]).unwrap();
        assert!(before <= 32 << 20);
    }
    assert!(spool.stats().unwrap().disk_bytes > 28 << 20);
}

#[test]
fn a_directory_keeps_its_engine() {
    let place = quick_directory();
    let engines = [Engine::Log, Engine::Sled];
    for (own, other) in engines.into_iter().zip(engines.into_iter().rev()) {
        let path = place.path().join(own.name());
        let options = |engine| Options { engine, ..small() };
        drop(Spool::open(&path, options(own)).unwrap());
        // Without a segment it is neither's.
        let spool = Spool::open(&path, options(other)).unwrap();
        drop(spool);
        let spool = Spool::open(&path, options(own)).unwrap();
        append(&spool, 10).unwrap();
        drop(spool);
        let names = || -> Vec<_> {
            let entries = path.read_dir().unwrap().map(Result::unwrap);
            let mut names: Vec<_> = entries
                .map(|e| (e.file_name(), e.metadata().unwrap().modified().unwrap()))
                .collect();
            names.sort();
            names
        };
        let before = names();
        match Spool::open(&path, options(other)).unwrap_err() {
            Error::OtherEngine { found, asked, dir } => {
                assert_eq!((found, asked), (own.name(), other.name()));
                assert_eq!(dir, path.display().to_string());
            }
            error => panic!("{error}"),
        }
        assert_eq!(names(), before);
        let spool = Spool::open(&path, options(own)).unwrap();
        assert_eq!(drain(&spool).len(), 1);
    }
}

#[test]
fn it_is_not_inspected() {
    let place = quick_directory();
    let spool = Spool::open(place.path(), small()).unwrap();
    append(&spool, 10).unwrap();
    let error = inspect(place.path()).unwrap_err();
    assert!(matches!(
        error,
        Error::NotInspectable { engine: "sled", .. }
    ));
    assert_eq!(drain(&spool).len(), 1);
}

/// What the process had in memory goes with it; what was durable stays, and the
/// stream ends.
#[test]
fn a_window_is_lost_with_the_process() {
    let place = quick_directory();
    let options = Options {
        sync: zk_spool::SyncPolicy::Every(std::time::Duration::from_secs(1 << 20)),
        full: Full::Reject,
        ..small()
    };
    let path = |name: &str| place.path().join(name);
    let spool = Spool::open(path("a"), options).unwrap();
    append_batch(&spool, &[50; 3]).unwrap();
    spool.sync().unwrap();
    append_batch(&spool, &[50; 3]).unwrap();
    copy(&path("a"), &path("b"));
    let left = Spool::open(path("b"), options).unwrap();
    assert_ne!(left.stream(), spool.stream());
    let before = left.predecessor().unwrap();
    assert_eq!(
        (before.stream, before.end),
        (spool.stream(), zk_spool::End::Window)
    );
    assert!((3..=6).contains(&before.last_sequence));
    assert_eq!(drain(&left).len() as u64, before.last_sequence);
    assert_eq!(left.losses().unwrap(), []);
}

/// With it nothing could be caught.
#[test]
fn no_profile_aborts_on_panic() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    for file in ["Cargo.toml", ".cargo/config.toml"] {
        let text = fs::read_to_string(root.join(file)).unwrap();
        assert!(!text.contains("\"abort\""), "{file}");
    }
}

/// sled does not meet a full disk: it is refused before, and there is room again when
/// a segment is drained.
#[test]
fn a_full_disk_refuses_and_drains() {
    let place = quick_directory();
    let Some(_mounted) = mount(place.path(), "24m", "a full disk") else {
        return;
    };
    let options = Options {
        cap: 256 << 20,
        segment_size: Some(1 << 20),
        ..defaults()
    };
    let spool = Spool::open(place.path().join("spool"), options).unwrap();
    let group = || append_batch(&spool, &[600; 64]).map(|numbers| numbers.len() as u64);
    let mut appended = 0;
    let mut refused = 0;
    while refused < 5 * 64 {
        match group() {
            Ok(records) => appended += records,
            Err(Error::DiskFull { .. }) => refused += 64,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(appended > 5000, "{appended}");
    let losses = spool.losses().unwrap();
    let said: Vec<_> = losses.iter().map(|l| (l.reason, l.records)).collect();
    assert_eq!(said, [(Reason::Full, refused)]);
    // To the last byte: what has to be opened for it waits until there is some room.
    let filler = place.path().join("filler");
    let mut file = fs::File::create(&filler).unwrap();
    while file.write_all(&[1; 4096]).is_ok() {}
    let waits = spool.peek(64, usize::MAX);
    assert!(matches!(waits, Err(Error::DiskFull { .. })), "{waits:?}");
    drop(file);
    fs::remove_file(filler).unwrap();
    let mut next = 1;
    while next < appended / 2 {
        let records = spool.peek(64, usize::MAX).unwrap();
        for record in &records {
            assert_eq!(record.sequence(), next);
            next += 1;
        }
        spool.ack(records.last().unwrap().position()).unwrap();
    }
    appended += group().unwrap();
    assert_eq!(drain(&spool).len() as u64, appended + 1 - next);
    spool.close().unwrap();
}

/// Whatever is left when the spool refuses more, is enough to drain it; of a few
/// databases, when it is opened anew, too.
#[test]
fn a_disk_that_it_filled_itself_is_drained() {
    for kibibytes in (8 << 10..14 << 10).step_by(421) {
        let place = quick_directory();
        let Some(_mounted) = mount(place.path(), &format!("{kibibytes}k"), "a full disk") else {
            return;
        };
        let options = Options {
            cap: 256 << 20,
            segment_size: Some(1 << 20),
            ..defaults()
        };
        let open = || Spool::open(place.path().join("spool"), options).unwrap();
        let mut spool = open();
        let mut appended = 0;
        let refused = loop {
            match append_batch(&spool, &[600; 16]) {
                Ok(numbers) => appended += numbers.len(),
                Err(error) => break error,
            }
        };
        assert!(matches!(refused, Error::DiskFull { .. }), "{refused}");
        assert!(appended > 2000, "{appended}");
        if kibibytes % 2 == 1 {
            drop(spool);
            spool = open();
        }
        assert_eq!(drain(&spool).len(), appended, "{kibibytes} KiB");
        append_batch(&spool, &[600; 16]).unwrap();
        spool.close().unwrap();
    }
}

/// A file system of its own.
fn mount<'a>(place: &'a Path, size: &str, what: &str) -> Option<Mounted<'a>> {
    if !rustix::process::geteuid().is_root() {
        tell(&format!(
            "NOT RUN: sled, {what}: needs root, to mount a file system"
        ));
        return None;
    }
    let mount = Command::new("mount")
        .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
        .arg(place)
        .output()
        .unwrap();
    if !mount.status.success() {
        let why = String::from_utf8_lossy(&mount.stderr);
        tell(&format!("NOT RUN: sled, {what}: {why}"));
        return None;
    }
    Some(Mounted(place))
}

struct Mounted<'a>(&'a Path);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let mut unmount = Command::new("umount");
        let unmounted = unmount.arg("--lazy").arg(self.0).status();
        assert!(unmounted.unwrap().success() || std::thread::panicking());
    }
}
