//! Real file systems: images of ext4 that are copied while a child works, which is
//! what a power cut leaves; a disk that is full, and one that is read-only; a
//! million records. All but the last take root, to mount them.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::geteuid;
use zk_spool::{Engine, Error, Full, Options, Reason, Spool, SyncPolicy, inspect};

use crate::{
    common::{append, append_batch, drain, effort, peek_all, tell},
    kill::{Journal, Worker, options},
};

/// A file system in a file, mounted.
struct Image {
    file: PathBuf,
    mounted: PathBuf,
}

impl Image {
    fn make(directory: &Path, mebibytes: u64) -> Self {
        let file = directory.join("image-0");
        File::create(&file)
            .unwrap()
            .set_len(mebibytes << 20)
            .unwrap();
        run(Command::new("mkfs.ext4")
            .args(["-q", "-F", "-b", "4096", "-m", "0"])
            .args(["-E", "lazy_itable_init=0,lazy_journal_init=0"])
            .arg(&file));
        Self::mount(file, "loop")
    }

    fn mount(file: PathBuf, options: &str) -> Self {
        let mounted = file.with_extension("mounted");
        fs::create_dir(&mounted).unwrap();
        until_it_works(
            Command::new("mount")
                .args(["-o", options])
                .args([&file, &mounted]),
        );
        Self { file, mounted }
    }

    fn spool(&self) -> PathBuf {
        self.mounted.join("spool")
    }

    /// A copy as of one moment. It is one if a second look finds the same: then
    /// nothing was written since the first came to its end.
    fn copy(&self, name: &str) -> PathBuf {
        let copy = self.file.with_file_name(name);
        for _ in 0..1000 {
            fs::copy(&self.file, &copy).unwrap();
            if fs::read(&self.file).unwrap() == fs::read(&copy).unwrap() {
                return copy;
            }
        }
        panic!("the image does not come to rest");
    }

    /// Writes until nothing more fits.
    fn fill(&self) -> PathBuf {
        let ballast = self.mounted.join("ballast");
        let mut file = File::create(&ballast).unwrap();
        for len in [64 << 10, 4096, 1] {
            while file.write_all(&vec![7; len]).is_ok() {}
        }
        file.sync_all().unwrap();
        ballast
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let mut unmount = Command::new("umount");
        unmount.arg("--lazy").arg(&self.mounted);
        assert!(unmount.status().unwrap().success() || std::thread::panicking());
        let _ = fs::remove_file(&self.file);
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| {
        panic!("{command:?}: {error}; run: sudo apt-get install e2fsprogs mount")
    });
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// For what another test or program can be in the way of for a moment: it was given
/// the same loop device, or a child that it starts holds our files until it is the
/// program that it is to be.
fn until_it_works(command: &mut Command) {
    let works = |command: &mut Command| command.output().is_ok_and(|out| out.status.success());
    if !(0..20).any(|_| works(command)) {
        run(command);
    }
}

/// Whether file systems can be mounted here; says so if not.
fn can_mount(what: &str) -> bool {
    if !geteuid().is_root() {
        tell(&format!("NOT RUN: {what}: needs root, to mount a disk"));
        return false;
    }
    // root in a container is not always allowed to
    const CAP_SYS_ADMIN: u32 = 21;
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let capabilities = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let capabilities = u64::from_str_radix(capabilities.unwrap().trim(), 16).unwrap();
    if capabilities >> CAP_SYS_ADMIN & 1 == 0 {
        tell(&format!("NOT RUN: {what}: this root may not mount a disk"));
        return false;
    }
    let mut free = Command::new("losetup");
    let free = free.arg("--find").output();
    if !free.is_ok_and(|free| free.status.success()) {
        tell(&format!("NOT RUN: {what}: this machine has no loop device"));
        return false;
    }
    true
}

/// The power goes off while a child appends and acknowledges; the next child goes
/// on with what was left.
#[test]
fn images_of_a_running_disk() {
    let rounds = 8 * effort();
    if !can_mount("power cuts on ext4") {
        return;
    }
    for policy in 0..2 {
        let directory = tempfile::tempdir().unwrap();
        // A database takes more than a file.
        let size = if crate::ENGINE == Engine::Log { 16 } else { 96 };
        let mut disk = Image::make(directory.path(), size);
        let mut journal = Journal::default();
        for round in 0..rounds {
            let seed = 2 * round + policy;
            let worker = Worker::start(&disk.spool(), seed, &mut journal);
            worker.freeze();
            let copy = disk.copy(&format!("image-{}", round + 1));
            worker.kill(&mut journal);
            // With `writeback` a file may have its new length before its new content.
            let modes = ["loop", "loop,data=writeback"];
            disk = Image::mount(copy, modes[round as usize / 2 % 2]);
            let spool = Spool::open(disk.spool(), options(policy)).unwrap();
            journal.check(&spool, policy == 0);
        }
        journal.check_end(policy);
    }
    tell(&format!("the power cut {} times on ext4", 2 * rounds));
}

/// Not one more byte fits. What is there can be opened and drained, which makes
/// room.
#[test]
fn a_disk_without_room() {
    if !can_mount("a full disk") {
        return;
    }
    for (sync, full) in [
        (SyncPolicy::Each, Full::Reject),
        (SyncPolicy::Each, Full::DropOldest),
        (SyncPolicy::Every(Duration::from_millis(1)), Full::Reject),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let image = Image::make(directory.path(), 12);
        let options = Options {
            cap: 64 << 20,
            segment_size: Some(64 << 10),
            sync,
            full,
            ..Options::default()
        };
        let spool = Spool::open(image.spool(), options).unwrap();
        for _ in 0..200 {
            append(&spool, 1000).unwrap();
        }
        let mut ballast = image.fill();
        let error = loop {
            match append(&spool, 1000) {
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        assert!(matches!(error, Error::DiskFull { .. }), "{error}");
        spool.sync().unwrap();
        let refused = spool.losses().unwrap().remove(0);
        assert_eq!((refused.reason, refused.records), (Reason::Full, 1));
        let kept = spool.stats().unwrap().records;
        assert!(kept >= 200);
        drop(spool);

        // No room for the mark of a clean end either, nor for anything at opening.
        fs::remove_file(&ballast).unwrap();
        ballast = image.fill();
        let spool = Spool::open(image.spool(), options).unwrap();
        let records = peek_all(&spool).unwrap();
        assert_eq!(records.len() as u64, kept);
        assert!(matches!(append(&spool, 1000), Err(Error::DiskFull { .. })));
        spool.ack(records[150].position()).unwrap();
        // Segments went, and there is room.
        let next = append(&spool, 1000).unwrap();
        spool.sync().unwrap();
        assert!(next > 0);
        assert_eq!(drain(&spool).len() as u64, kept - 150);
        assert_eq!(spool.verify().unwrap().damage, []);
        spool.close().unwrap();
        fs::remove_file(&ballast).unwrap();
        assert_eq!(inspect(image.spool()).unwrap().unwrap().records, 0);
    }
    tell("a really full ext4: opened, drained and appended to");
}

/// A disk that became read-only, as Linux makes one that fails.
#[test]
fn a_disk_that_is_read_only() {
    if !can_mount("a read-only disk") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let image = Image::make(directory.path(), 12);
    let spool = Spool::open(image.spool(), Options::default()).unwrap();
    append_batch(&spool, &[100; 3]).unwrap();
    spool.close().unwrap();
    let remount = |how: &str| {
        until_it_works(
            Command::new("mount")
                .args(["-o", &format!("remount,{how}")])
                .arg(&image.mounted),
        );
    };
    remount("ro");
    for directory in [image.spool(), image.mounted.join("new")] {
        let opened = Spool::open(directory, Options::default());
        let error = opened.unwrap_err();
        assert!(matches!(&error, Error::Io { .. }), "{error}");
    }
    assert_eq!(inspect(image.spool()).unwrap().unwrap().records, 3);
    remount("rw");
    let spool = Spool::open(image.spool(), Options::default()).unwrap();
    assert_eq!(drain(&spool).len(), 3);
    tell("a read-only ext4: refused, and as it was");
}

const DIRECTORY: &str = "ZK_SPOOL_TEST_MANY";
const RECORDS: &str = "ZK_SPOOL_TEST_RECORDS";

fn many() -> Options {
    Options {
        cap: 2 << 30,
        sync: SyncPolicy::Every(Duration::from_secs(1)),
        ..Options::default()
    }
}

/// What children do: the first appends, and waits to be killed; the second opens.
#[test]
fn child() {
    let Ok(directory) = std::env::var(DIRECTORY) else {
        return;
    };
    let records: u64 = std::env::var(RECORDS).unwrap().parse().unwrap();
    if records > 0 {
        let spool = Spool::open(&directory, many()).unwrap();
        while spool.stats().unwrap().appended < records {
            append_batch(&spool, &[600; 50]).unwrap();
        }
        spool.sync().unwrap();
        println!("\nmany done");
        std::thread::park();
    }
    let number = |file: &str, name: &str| -> u64 {
        let text = fs::read_to_string(file).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let digits = line.unwrap().split_whitespace().next().unwrap();
        digits.parse().unwrap()
    };
    let look = || {
        let read = number("/proc/self/io", "rchar:");
        (read, number("/proc/self/status", "VmHWM:"))
    };
    let before = look();
    let start = Instant::now();
    let spool = Spool::open(directory, many()).unwrap();
    let took = start.elapsed();
    let after = look();
    let waiting = spool.stats().unwrap().records;
    println!(
        "\nmany {waiting} {} {} {}",
        after.0 - before.0,
        after.1 - before.1,
        took.as_millis()
    );
}

/// Starts one, and lets `end` have it when it has said its numbers.
fn many_child(directory: &Path, records: u64, end: impl FnOnce(&mut Child)) -> Vec<u64> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["disk::child", "--exact", "--nocapture"])
        .env(DIRECTORY, directory)
        .env(RECORDS, records.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let said = lines
        .by_ref()
        .map(Result::unwrap)
        .find_map(|line| line.strip_prefix("many ").map(str::to_owned));
    let words = said.expect("the child says it");
    end(&mut child);
    lines.for_each(drop);
    child.wait().unwrap();
    words.split(' ').flat_map(str::parse).collect()
}

/// Opening does not read what waits, however much that is.
#[test]
fn many_records() {
    let records = if effort() > 1 { 1_000_000 } else { 20_000 };
    let directory = tempfile::tempdir().unwrap();
    many_child(directory.path(), records, |child| child.kill().unwrap());
    let numbers = many_child(directory.path(), 0, |_| {});
    let [waiting, read, memory, took] = numbers[..] else {
        panic!("{numbers:?}");
    };
    tell(&format!(
        "{waiting} records after kill -9: opened in {took} ms (tests are not optimised), \
         reading {} KiB, with {memory} KiB",
        read >> 10
    ));
    assert_eq!(waiting, records);
    assert!(read < 32 << 20, "{read} bytes");
    assert!(memory < 16 << 10, "{memory} KiB");
    let spool = Spool::open(directory.path(), many()).unwrap();
    let mut drained = 0;
    while let Some(last) = spool.peek(1000, 1 << 20).unwrap().last() {
        drained += last.sequence() - drained;
        spool.ack(last.position()).unwrap();
    }
    assert_eq!(drained, records);
    assert_eq!(spool.stats().unwrap().segments, 1);
}
